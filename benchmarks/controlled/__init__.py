"""Controlled experiments: is each level of the paper used for what it is for, and does it do harm where it cannot help?"""
