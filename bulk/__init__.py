"""Bulk tagging on Ray Data: where posts come from, the actor that tags them, the folder of results."""
