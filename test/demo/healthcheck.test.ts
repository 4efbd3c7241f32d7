/** The container's health check: one byte of answer to an SSLRequest is health, anything else is not. */
import { execFile } from 'node:child_process';
import { createServer, type Socket } from 'node:net';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { freePort } from '../../src/demo/postmaster.ts';

const SCRIPT = fileURLToPath(new URL('../../deploy/healthcheck.mjs', import.meta.url));

function check(port: number | string): Promise<number> {
  const env = { PATH: process.env['PATH'], PGTURNSTILE_HEALTH_PORT: String(port) };
  return new Promise((resolve) => {
    execFile(process.execPath, [SCRIPT], { env }, (error) => resolve(error ? Number(error.code) : 0));
  });
}

it.each<[string, (socket: Socket, request: Buffer) => unknown, number]>([
  ['S (TLS is on)', (socket) => socket.write('S'), 0],
  ['N (TLS is off)', (socket) => socket.write('N'), 0],
  ['an error message', (socket) => socket.write('E'), 1],
  ['HTTP', (socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n'), 1],
  ['a closed connection', (socket) => socket.end(), 1],
  ['a reset connection', (socket) => socket.resetAndDestroy(), 1],
  ['silence', () => {}, 1],
  [
    'S to nothing but an SSLRequest',
    (socket, request) => socket.write(request.toString('hex') === '0000000804d2162f' ? 'S' : 'E'),
    0,
  ],
])('%s', async (_what, answer, code) => {
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', (request) => answer(socket, request));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  try {
    expect(await check((server.address() as { port: number }).port)).toBe(code);
  } finally {
    server.close();
  }
});

it('a port where nobody listens, and one that is none', async () => {
  expect(await check(await freePort())).toBe(1);
  expect(await check('http')).toBe(1);
  expect(await check(70_000)).toBe(1);
});
