/**
 * Cancel requests to PostgreSQL: a connection of their own, encrypted like the one they are about, that carries
 * nothing but the key. PostgreSQL has sent its signal when it closes that connection.
 */
import net from 'node:net';
import type { TLSSocket } from 'node:tls';
import { encodeCancelRequest, SSL_REQUEST } from '../protocol/message-writer.ts';
import type { ServerConnection } from './server-connection.ts';
import type { ServerTarget } from './server-login.ts';
import { startServerTls } from './server-tls.ts';

/**
 * Asks PostgreSQL to cancel what runs on the connection, which is not lent again before the request is done with.
 * Resolves in any case, at the latest after the target's connect timeout; the signal may then still come, and the
 * connection is not lent again at all.
 */
export function cancelServer(server: ServerConnection, target: ServerTarget): Promise<void> {
  if (server.secretKey.length === 0) return Promise.resolve();
  server.cancelsInFlight++;
  return sendCancel(server, target).then((isCertain) => {
    if (!isCertain) server.retired = true;
    server.cancelsInFlight--;
    const done = server.onCancelsDone;
    if (server.cancelsInFlight > 0 || done === null) return;
    server.onCancelsDone = null;
    done();
  });
}

/** False when PostgreSQL had the request and did not say in time that it is done with it. */
function sendCancel(server: ServerConnection, target: ServerTarget): Promise<boolean> {
  const request = encodeCancelRequest(server.processId, server.secretKey);
  return new Promise((resolve) => {
    const socket = target.host.startsWith('/')
      ? net.connect(`${target.host}/.s.PGSQL.${target.port}`)
      : net.connect({ host: target.host, port: target.port, noDelay: true });
    let secure: TLSSocket | null = null;
    let over = false;
    let sent = false;
    const done = (isCertain: boolean): void => {
      if (over) return;
      over = true;
      clearTimeout(timer);
      secure?.destroy();
      socket.destroy();
      resolve(isCertain);
    };
    const settle = (): void => done(true);
    const timer = setTimeout(() => done(!sent), Math.min(target.connectTimeoutMs, CANCEL_TIMEOUT_MS_MAX));
    socket.on('error', settle);
    socket.on('close', settle);
    socket.once('connect', () => {
      if (!server.wire.encrypted) {
        socket.resume();
        sent = true;
        socket.write(request);
        return;
      }
      socket.write(SSL_REQUEST);
      socket.once('data', (answer) => {
        if (answer.length !== 1 || answer[0] !== SSL_ACCEPTED) return settle();
        const encrypted = startServerTls(socket, target.host, target.tls);
        secure = encrypted;
        encrypted.on('error', settle);
        encrypted.on('close', settle);
        encrypted.once('secureConnect', () => {
          encrypted.resume();
          sent = true;
          encrypted.write(request);
        });
      });
    });
  });
}

const SSL_ACCEPTED = 0x53;
const CANCEL_TIMEOUT_MS_MAX = 30_000;
