"""Keys and the tokens that are made with them (RFC 7516 to 7518)."""
