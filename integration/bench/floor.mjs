/**
 * A server that answers a login with bytes made beforehand: asks for a password, takes any, says welcome. What it
 * costs is what accepting, reading, writing and closing cost in Node.js. Must not know who asks.
 */
import { createServer } from 'node:net';

const [host, port] = process.argv.slice(2);
/** AuthenticationCleartextPassword. */
const ASK = Buffer.from('520000000800000003', 'hex');
/** AuthenticationOk, BackendKeyData, ReadyForQuery. */
const WELCOME = Buffer.from('5200000008000000004b0000000c00000001000000025a0000000549', 'hex');

createServer({ noDelay: true }, (socket) => {
  let isAsked = false;
  socket.on('error', () => socket.destroy());
  socket.on('data', (bytes) => {
    if (!isAsked) {
      isAsked = true;
      socket.write(ASK);
    } else if (bytes[0] === 0x70) {
      socket.write(WELCOME);
    } else {
      socket.destroy();
    }
  });
}).listen(Number(port), host);
