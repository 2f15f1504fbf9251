"""Keys and tokens: reads keys, and makes and opens JWEs (RFC 7516 to 7518). `proxy.core.fields` seals and opens the
values of bodies with it, `proxy.policyfile` reads keys with it, and the command `overcoat keys` does both by hand.

Offers:

- `encoding`: parse_object, unbase64url; base64url, and JSON objects without duplicate members
- `jwe`: JweError, Opening, is_json_serialized, is_token, open_token; tokens that come
- `jwksets`: fitting_keys, keys_of_set; JWK Sets
- `keyformats`: looks_like_key, members_of_set; the forms in which files hold keys
- `keymaterial`: SecretBytes; a secret that is never printed
- `keys`: MAX_KID_LENGTH, Alg, BadKey, Bind, Enc, Key, KeySet, NoKey, Supply, alg_for, is_public, load_key, new_key;
  keys, and the sets of them that a policy names
- `keywriting`: thumbprint, to_jwk, to_pem; keys as text
- `profiles`: Profile, form_of; how others use JWE
- `sealing`: Sealers, Sealing, seal; tokens that are made
- `rotation`: Step, add, promote, retire, standing; how the keys of a JWK Set are replaced
- `place`: Place, ascii_text, read_media_type; how a token says which host and field it belongs to
"""
