"""Published ways to say which heads are what. One file each; a new one is picked up by being there."""

from .registry import Found, Method, find_method, load_methods, method

__all__ = ["Found", "Method", "find_method", "load_methods", "method"]
