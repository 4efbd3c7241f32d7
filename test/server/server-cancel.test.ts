import { once } from 'node:events';
import net from 'node:net';
import { expect, onTestFinished, test } from 'vitest';
import { cancelServer } from '../../src/server/server-cancel.ts';
import type { ServerConnection } from '../../src/server/server-connection.ts';
import type { ServerTarget } from '../../src/server/server-login.ts';

/** A server that takes cancel requests, and closes their connections when it `closes`. */
async function cancelAt(closes: boolean): Promise<ServerConnection> {
  const sockets: net.Socket[] = [];
  const listener = net.createServer((socket) => {
    sockets.push(socket);
    socket.on('error', () => {}).on('data', () => closes && socket.end());
  });
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy();
    listener.close();
  });
  const { port } = listener.address() as net.AddressInfo;
  const server = {
    processId: 1,
    secretKey: Buffer.alloc(4),
    wire: { encrypted: false },
    cancelsInFlight: 0,
    onCancelsDone: null,
    retired: false,
  } as unknown as ServerConnection;
  await cancelServer(server, { host: '127.0.0.1', port, connectTimeoutMs: 100 } as ServerTarget);
  return server;
}

test('a connection is not lent again when its cancel request may still be on the way', async () => {
  expect(await cancelAt(false)).toMatchObject({ retired: true, cancelsInFlight: 0 });
});

test('it is when PostgreSQL has said that it is done with the request', async () => {
  expect(await cancelAt(true)).toMatchObject({ retired: false, cancelsInFlight: 0 });
});

test('and when the request never got there', async () => {
  const server = {
    processId: 1,
    secretKey: Buffer.alloc(4),
    cancelsInFlight: 0,
    onCancelsDone: null,
    retired: false,
  };
  const target = { host: '127.0.0.1', port: 1, connectTimeoutMs: 100 } as ServerTarget;
  await cancelServer(server as unknown as ServerConnection, target);
  expect(server).toMatchObject({ retired: false, cancelsInFlight: 0 });
});
