# A server of asyncio that answers its own clients, over sockets of this process.
import asyncio
import time

CLIENTS = 8
REQUESTS = 600


async def serve(reader, writer):
    while line := await reader.readline():
        body = (b"hello " + line.strip()) * 40
        writer.write(b"%d\n" % len(body) + body)
        await writer.drain()
    writer.close()


async def ask(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for number in range(REQUESTS):
        writer.write(b"request %d\n" % number)
        await reader.readexactly(int(await reader.readline()))
    writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await asyncio.gather(*(ask(port) for _ in range(CLIENTS)))
    server.close()


begin, used = time.perf_counter(), time.process_time()
asyncio.run(main())
print(time.perf_counter() - begin, time.process_time() - used, CLIENTS * REQUESTS)
