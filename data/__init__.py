"""Bundled data, installed as ``pyro_fcr.bundled``; see README.md beside this file."""
