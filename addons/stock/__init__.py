"""The same protections inside stock mitmproxy (docs/mitmproxy.md). `proxy.stock` puts them together. What our engine
does round the addons is done here with mitmproxy's own hooks, so far as they allow it: what goes wrong in a hook
denies, only allowed addresses are dialled, only strict heads pass.

Offers:

- `apps`: Apps; who is let in, and what may be spoken inside CONNECT
- `dials`: Dials; which addresses mitmproxy may dial
- `guard`: Guard; the one addon that mitmproxy knows: it calls ours, and denies if one raises
- `heads`: Heads; heads read as strictly as in our engine
"""
