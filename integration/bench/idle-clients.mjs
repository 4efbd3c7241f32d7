/**
 * Child process of the memory rows: opens connections, then lets each run one query when told to, and holds them
 * until the channel ends. Must not know who is measured.
 */
import { RawClient } from './raw-client.mjs';

const PARALLEL = 32;

/** @typedef {{ open: { count: number, target: import('./raw-client.mjs').Target } } | { query: string }} Order */

/** @type {RawClient[]} */
const clients = [];

process.on('disconnect', () => process.exit(0));
process.on('message', (message) => {
  carryOut(/** @type {Order} */ (message)).then(
    () => process.send?.({ done: clients.length }),
    (error) => process.send?.({ error: error.message }),
  );
});

/** @param {Order} order */
async function carryOut(order) {
  if ('open' in order) {
    const { count, target } = order.open;
    await inParallel(count, async () => {
      clients.push(await RawClient.open(target));
    });
  } else {
    await inParallel(clients.length, (index) => clients[index]?.query(order.query));
  }
}

/**
 * @param {number} count
 * @param {(index: number) => Promise<unknown> | undefined} task
 */
async function inParallel(count, task) {
  let next = 0;
  const lane = async () => {
    while (next < count) await task(next++);
  };
  await Promise.all(Array.from({ length: PARALLEL }, lane));
}
