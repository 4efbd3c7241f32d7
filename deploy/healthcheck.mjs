/**
 * Is the pooler in this container answering? Opens its port and sends an SSLRequest (PostgreSQL manual, section
 * 54.2.10), which every listener answers with one byte before any login. Exit code 0: it did; 1: it did not.
 * The port is PGTURNSTILE_HEALTH_PORT, else PGDOG_PORT, else 6432.
 */
import { connect } from 'node:net';

const TIMEOUT_MS = 3_000;
const SSL_REQUEST = Buffer.from([0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]);

const port = Number(process.env.PGTURNSTILE_HEALTH_PORT || process.env.PGDOG_PORT || 6432);
const end = (code) => process.exit(code);

if (!Number.isInteger(port) || port < 1 || port > 65_535) end(1);
const socket = connect({ host: '127.0.0.1', port }, () => socket.write(SSL_REQUEST));
socket.setTimeout(TIMEOUT_MS, () => end(1));
socket.on('error', () => end(1));
socket.on('close', () => end(1));
socket.on('data', (answer) => end(answer[0] === 0x53 || answer[0] === 0x4e ? 0 : 1));
