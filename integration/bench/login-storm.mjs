/**
 * Child process of the login rows: logs in as often as it is told, on several lanes, with one password or with a new
 * one each time, and says how long that took. Must not know who is measured.
 */
import { RawClient } from './raw-client.mjs';

/** @typedef {{ target: import('./raw-client.mjs').Target, clients: number, count: number, passwords: string[] }} Order */

process.on('disconnect', () => process.exit(0));
process.on('message', (message) => {
  carryOut(/** @type {Order} */ (message)).then(
    (seconds) => process.send?.({ seconds }),
    (error) => process.send?.({ error: error.message }),
  );
});

/** @param {Order} order */
async function carryOut({ target, clients, count, passwords }) {
  let next = 0;
  const lane = async () => {
    while (next < count) {
      const password = passwords[next++ % passwords.length] ?? '';
      const client = await RawClient.open({ ...target, password });
      client.close();
    }
  };
  const startedMs = performance.now();
  await Promise.all(Array.from({ length: clients }, lane));
  return (performance.now() - startedMs) / 1000;
}
