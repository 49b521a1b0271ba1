"""Here so that pytest puts this folder on the path: the rooms' tests share the helpers that lie in it."""
