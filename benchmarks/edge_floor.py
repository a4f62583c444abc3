"""Floor of uploads: what one process reads from sockets into files, and nothing else.

``python edge_floor.py FOLDER CERT KEY`` prints its port and writes what each connection
sends to a file of its own, over TLS, until stdin ends. A connection begins with the
number of its bytes, and is answered by one byte.
"""

import asyncio
import itertools
import ssl
import sys
from pathlib import Path

PIECE = 1 << 18


async def main(folder: Path, cert: str, key: str) -> None:
    """Serve until stdin ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    numbers = itertools.count()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        n_left = int.from_bytes(await reader.readexactly(8), "little")
        path = folder / f"{next(numbers)}.part"
        with path.open("wb", buffering=0) as file:
            while n_left and (piece := await reader.read(PIECE)):
                n_left -= file.write(piece)
        path.unlink()
        writer.write(b".")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(
        take, "127.0.0.1", 0, ssl=context, limit=PIECE, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:4]))
