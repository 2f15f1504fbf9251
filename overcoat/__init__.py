"""The one name that a wheel installs. In a wheel `proxy` and `addons` are inside this folder, in a checkout
beside it.
"""
