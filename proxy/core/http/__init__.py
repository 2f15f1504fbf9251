"""HTTP as it stands on the wire: heads, where bodies end, fields that concern one connection, redirects, cookies, errors."""
