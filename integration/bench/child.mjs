/**
 * One question and one answer at a time with a child process of ours. Owns the time-out. Must not know the questions.
 */

/**
 * A child that answers each order with one message; an answer with `error` is a failure.
 * @typedef {{ ask: (order: object, timeoutMs: number) => Promise<any>, end: () => Promise<void> }} Helper
 */

/**
 * @param {import('./workplace.mjs').Workplace} workplace
 * @param {string} script Name of a file beside this one.
 * @returns {Helper}
 */
export function startHelper(workplace, script) {
  const { child, ended } = workplace.fork(new URL(script, import.meta.url));
  return {
    ask: (order, timeoutMs) =>
      new Promise((resolve, reject) => {
        const settle = (/** @type {() => void} */ how) => {
          clearTimeout(timer);
          child.off('message', onMessage);
          child.off('exit', onExit);
          how();
        };
        const onMessage = (/** @type {any} */ answer) =>
          settle(() => (answer.error === undefined ? resolve(answer) : reject(new Error(answer.error))));
        const onExit = () => settle(() => reject(new Error(`${script} ended without an answer`)));
        const timer = setTimeout(
          () => settle(() => reject(new Error(`${script} gave no answer in ${timeoutMs / 1000} s`))),
          timeoutMs,
        );
        child.on('message', onMessage);
        child.on('exit', onExit);
        child.send(order);
      }),
    end: async () => {
      if (child.connected) child.disconnect();
      // What hangs in the middle of an answer would not see the channel end.
      const timer = setTimeout(() => child.kill('SIGKILL'), 5000);
      await ended;
      clearTimeout(timer);
    },
  };
}
