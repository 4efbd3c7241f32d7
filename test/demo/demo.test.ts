/** The demo's frame: what it starts, prints, returns and leaves behind, with the pooler and with stand-ins for it. */
import { connect } from 'node:net';
import { expect, it } from 'vitest';
import { createLogger, type Logger } from '../../src/base/log.ts';
import type { Config } from '../../src/config/config.ts';
import { type DemoOptions, runDemo, type StartWorker } from '../../src/demo/demo.ts';
import { startWorker } from '../../src/worker.ts';

interface Run {
  code: number;
  text: string;
  log: string;
  configs: Config[];
}

async function run(start: StartWorker, options: Partial<DemoOptions> = {}): Promise<Run> {
  let text = '';
  let log = '';
  const configs: Config[] = [];
  const logger: Logger = createLogger({
    format: 'text',
    level: 'info',
    destination: { write: (line) => (log += line) },
  });
  const code = await runDemo({
    once: false,
    log: logger,
    startWorker: (given) => {
      configs.push(given.config);
      return start(given);
    },
    print: (line) => {
      text += `${line}\n`;
    },
    ...options,
  });
  return { code, text, log, configs };
}

function taken(): Error {
  return Object.assign(new Error('listen EADDRINUSE'), { code: 'EADDRINUSE' });
}

/** "Behind it: PostgreSQL on 127.0.0.1:PORT (primary) …" */
function primaryPort(config: Config): number {
  return config.databases.find((row) => row.role === 'primary')!.port;
}

it('stays until it is told to end, prints lines to paste, drains, and leaves nothing', async () => {
  const stay = new AbortController();
  const calls: string[] = [];
  const { code, text, log, configs } = await run(
    async ({ config }) => {
      // The welcome is printed after this; ending on the next turns of the loop is early enough for every order.
      setImmediate(() => stay.abort());
      return {
        host: config.general.host,
        port: 7_777,
        drain: async () => calls.push('drain'),
        destroy: () => calls.push('destroy'),
      };
    },
    { signal: stay.signal },
  );
  expect(code).toBe(0);
  expect(calls).toEqual(['drain', 'destroy']);
  const tokens = [
    ...text.matchAll(
      /^PGPASSWORD=(eyJ\S+) psql "host=127.0.0.1 port=7777 dbname=app user=(\w+) sslmode=disable"$/gm,
    ),
  ];
  expect(tokens.map((match) => match[2])).toEqual(['alice', 'rita']);
  expect(text).toContain("read-only by PostgreSQL's GRANTs");
  expect(log).not.toMatch(/eyJ/);
  const [config] = configs;
  expect(config?.general).toMatchObject({ port: 6432, authType: 'jwt', host: '127.0.0.1' });
  expect(config?.jwt).toMatchObject({
    serverUser: 'turnstile',
    userAutoProvision: true,
    usernameClaim: 'sub',
  });
  expect(config?.databases.map((row) => [row.name, row.role])).toEqual([
    ['app', 'primary'],
    ['app', 'replica'],
  ]);
  const secret = config!.jwt.serverPassword!.reveal();
  expect(`${text}${log}`).not.toContain(secret);
  await expect(fetch(config!.jwt.jwksUrl!)).rejects.toThrow();
});

it('once: a tour that fails is exit code 1, printed step by step', async () => {
  const { code, text, configs } = await run(
    async ({ config }) => ({
      host: '127.0.0.1',
      port: primaryPort(config),
      drain: async () => {},
      destroy: () => {},
    }),
    { once: true },
  );
  expect(code).toBe(1);
  expect(configs[0]?.general.port).toBe(0);
  expect(text).toMatch(/✗ alice logs in .*28P01/);
  expect(text).toContain('of 13 steps');
});

it('once: with the real pooler every step of the tour comes out as it must', async () => {
  const { code, text, log } = await run(startWorker, { once: true });
  expect(text.split('\n').filter((line) => line.includes('✗'))).toEqual([]);
  expect(text).toContain('13 of 13 steps');
  expect(code).toBe(0);
  expect(`${text}${log}`).not.toMatch(/eyJ/);
});

it('a taken default port is replaced by a free one, a taken port that was asked for is exit code 3', async () => {
  const elsewhere = await run(async () => Promise.reject(taken()));
  expect(elsewhere.code).toBe(3);
  expect(elsewhere.configs.map((config) => config.general.port)).toEqual([6432, 0]);
  const asked = await run(async () => Promise.reject(taken()), { port: 5_999, host: '0.0.0.0' });
  expect(asked.code).toBe(3);
  expect(asked.configs.map((config) => [config.general.host, config.general.port])).toEqual([
    ['0.0.0.0', 5_999],
  ]);
  expect(asked.text).toContain('cannot run');
});

it('a pooler that does not start is exit code 1, and its PostgreSQL is gone', async () => {
  const { code, text, configs, log } = await run(async () => Promise.reject(new Error('no such luck')));
  expect(code).toBe(1);
  expect(text).toContain('no such luck');
  expect(configs).toHaveLength(1);
  const started = /primary on port (\d+)/.exec(log);
  expect(Number(started?.[1])).toBe(primaryPort(configs[0]!));
  expect(await isClosed(primaryPort(configs[0]!))).toBe(true);
});

function isClosed(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host: '127.0.0.1', port });
    socket.once('connect', () => {
      socket.destroy();
      resolve(false);
    });
    socket.once('error', () => resolve(true));
  });
}
