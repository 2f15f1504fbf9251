"""The one name that is installed. `proxy` and `addons` lie in here in a wheel, and beside it in a checkout."""
