"""Python's aiohttp, which reads the proxy variables only with trust_env."""

import asyncio
import os

import aiohttp


async def main() -> None:
    """Ask the four."""
    async with aiohttp.ClientSession(trust_env=True) as session:
        async with session.post(os.environ["UPGRADED"], json={"card": "4111111111111111", "name": "x"}) as response:
            print("upgraded", response.status)
        for name in ("inspected", "tunnelled", "refused"):
            async with session.get(os.environ[name.upper()]) as response:
                print(name, response.status)


asyncio.run(main())
