"""HTTP as it stands on the wire: heads, where bodies end, fields of one connection, redirects, cookies, errors."""
