"""Controlled experiments: does each level of the paper carry what it is for, and what does it cost elsewhere?"""
