/**
 * Child process of the COPY rows: reads a whole result on one connection, throws it away and says how many bytes it
 * was and how long it took. Must not know who sends it.
 */
import { RawClient } from './raw-client.mjs';

process.on('disconnect', () => process.exit(0));
process.on('message', (message) => {
  read(/** @type {{ sql: string, target: import('./raw-client.mjs').Target }} */ (message)).then(
    (answer) => process.send?.(answer),
    (error) => process.send?.({ error: error.message }),
  );
});

/** @param {{ sql: string, target: import('./raw-client.mjs').Target }} order */
async function read({ sql, target }) {
  const client = await RawClient.open(target);
  const startedMs = performance.now();
  const bytes = await client.drain(sql);
  const seconds = (performance.now() - startedMs) / 1000;
  client.close();
  return { bytes, seconds };
}
