/**
 * Much data with little memory: the pooler runs as a program of its own, built for the purpose, and its resident set
 * is read from /proc while a gigabyte of rows, values larger than any buffer and readers that do not read go through.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { COPY_DONE, encodeQuery, SYNC } from '../src/protocol/message-writer.ts';
import { asSuperuser } from '../test/support/postgres.ts';
import { frame, ScriptedClient } from '../test/support/scripted-client.ts';
import { B, D, E, P, Q } from './support/conversation.ts';
import { type PoolerFiles, writePoolerFiles } from './support/pooler.ts';
import { makeWorld, until, type World } from './support/world.ts';

const ROOT = join(import.meta.dirname, '..');
const MB = 1024 * 1024;
/** What more than when idle is allowed; the bound of the benchmark too. */
const GROWTH_MAX = 64 * MB;

describe('volume through a pooler of its own process', () => {
  let world: World;
  let files: PoolerFiles;
  let build: string;
  let child: ChildProcess;
  let port = 0;
  let idleBytes = 0;

  beforeAll(async () => {
    build = mkdtempSync(join(ROOT, 'node_modules', '.pgturnstile-build-'));
    await promisify(execFile)(
      join(ROOT, 'node_modules', '.bin', 'tsc'),
      ['-p', 'tsconfig.build.json', '--outDir', join(build, 'dist')],
      {
        cwd: ROOT,
      },
    );
    copyFileSync(join(ROOT, 'package.json'), join(build, 'package.json'));
    world = await makeWorld();
    files = writePoolerFiles(
      world.overrides('set_role', { default_pool_size: 3, log_format: 'json', shutdown_timeout: 1_000 }),
    );
    child = spawn(
      process.execPath,
      [join(build, 'dist', 'main.js'), 'run', '--config', files.configPath, '--users', files.usersPath],
      {
        env: { PATH: process.env['PATH'] },
        stdio: ['ignore', 'pipe', 'inherit'],
      },
    );
    let output = '';
    child.stdout?.on('data', (chunk: Buffer) => {
      if (port === 0) output += chunk.toString();
      port ||= Number(/"port":(\d+)/.exec(output)?.[1] ?? 0);
    });
    await until(() => port > 0 || child.exitCode !== null, 'the pooler listens', 20_000);
    const warm = await login();
    await warm.query("SELECT repeat('w', 1000) FROM generate_series(1, 20000)");
    await warm.terminate();
    idleBytes = residentBytes();
  });
  afterAll(async () => {
    if (child?.exitCode === null) {
      const closed = once(child, 'close');
      child.kill('SIGTERM');
      await closed;
    }
    files?.remove();
    await world?.drop();
    if (build !== undefined) rmSync(build, { recursive: true, force: true });
  });

  const login = async (): Promise<ScriptedClient> =>
    ScriptedClient.login({
      port,
      user: world.alice,
      password: await world.issuer.token(world.alice),
      database: world.database,
    });
  const residentBytes = (): number => {
    const status = readFileSync(`/proc/${child.pid}/status`, 'utf8');
    return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1]) * 1024;
  };
  /** Runs `work` and returns how far the resident set rose above idle at worst. */
  const growthDuring = async (work: () => Promise<void>): Promise<number> => {
    let most = residentBytes();
    const watch = setInterval(() => {
      most = Math.max(most, residentBytes());
    }, 20);
    try {
      await work();
    } finally {
      clearInterval(watch);
    }
    return most - idleBytes;
  };
  /** Reads and forgets; resolves with the number of bytes when they end with ReadyForQuery 'I'. */
  const drain = (client: ScriptedClient): Promise<number> => {
    const { socket } = client;
    socket.removeAllListeners('data');
    return new Promise((resolve, reject) => {
      let total = 0;
      let tail = Buffer.alloc(0);
      socket.on('close', () => reject(new Error(`the connection ended after ${total} bytes`)));
      socket.on('data', (chunk: Buffer) => {
        total += chunk.length;
        tail = Buffer.concat([tail, chunk.subarray(-6)]).subarray(-6);
        if (tail.equals(READY_IDLE)) resolve(total);
      });
    });
  };

  it('a gigabyte of rows streams through with flat memory', async () => {
    const client = await login();
    const growth = await growthDuring(async () => {
      client.sendQuery("SELECT repeat('x', 8000) FROM generate_series(1, 134218)");
      expect(await drain(client)).toBeGreaterThan(1024 * MB);
    });
    client.destroy();
    expect(growth).toBeLessThan(GROWTH_MAX);
  });

  it('one value of 200 MB goes each way with flat memory', async () => {
    const client = await login();
    const size = 200_000_000;
    const growth = await growthDuring(async () => {
      client.sendQuery(`SELECT repeat('x', ${size})`);
      expect(await drain(client)).toBeGreaterThan(size);
    });
    client.destroy();
    expect(growth).toBeLessThan(GROWTH_MAX);
    const sender = await login();
    const value = Buffer.alloc(size, 'v');
    const length = Buffer.alloc(4);
    length.writeInt32BE(size);
    const bind = frame('B', Buffer.from([0, 0, 0, 0, 0, 1]), 4 + 6 + 4 + size + 2);
    const sendGrowth = await growthDuring(async () => {
      sender.send(P('', 'SELECT length($1::text)'));
      sender.socket.write(bind);
      sender.socket.write(length);
      sender.socket.write(value);
      sender.send(Buffer.from([0, 0]), D('P', ''), E(''), SYNC);
      expect((await sender.readReply(20_000)).rows).toEqual([[`${size}`]]);
    });
    await sender.terminate();
    expect(sendGrowth).toBeLessThan(GROWTH_MAX);
  });

  it('COPY in of 200 MB goes through with flat memory, also where PostgreSQL is slow to take it', async () => {
    const client = await login();
    await client.query('CREATE TABLE copied (line text)');
    const chunk = Buffer.concat(Array.from({ length: 100 }, () => frame('d', `${'c'.repeat(9_999)}\n`)));
    const growth = await growthDuring(async () => {
      client.send(Q('COPY copied FROM STDIN'));
      await client.expect('G');
      for (let count = 0; count < 200; count++) {
        if (!client.socket.write(chunk)) await once(client.socket, 'drain');
      }
      client.send(COPY_DONE);
      expect((await client.readReply(30_000)).tags).toEqual(['COPY 20000']);
    });
    await client.query('DROP TABLE copied');
    await client.terminate();
    expect(growth).toBeLessThan(GROWTH_MAX);
  });

  it('a reader that does not read stops PostgreSQL, costs no memory and holds up nobody', async () => {
    const slow = await login();
    slow.pause();
    slow.sendQuery("SELECT repeat('s', 8000) FROM generate_series(1, 40000)");
    const other = await login();
    let slowest = 0;
    const growth = await growthDuring(async () => {
      for (let count = 0; count < 200; count++) {
        const startedAtMs = performance.now();
        expect((await other.query('SELECT 1')).rows).toEqual([['1']]);
        slowest = Math.max(slowest, performance.now() - startedAtMs);
      }
      await until(async () => {
        const [server] = await asSuperuser([
          `SELECT wait_event FROM pg_stat_activity
           WHERE datname = '${world.database}' AND query LIKE '%generate_series(1, 40000)'`,
        ]);
        return server?.['wait_event'] === 'ClientWrite';
      }, 'PostgreSQL waits for the reader');
      const all = drain(slow);
      slow.resume();
      expect(await all).toBeGreaterThan(320_000_000);
    });
    expect(slowest).toBeLessThan(1_000);
    expect(growth).toBeLessThan(GROWTH_MAX);
    slow.destroy();
    await other.terminate();
  });

  it('a client that only sends and never reads is not read any more', async () => {
    const deaf = await login();
    deaf.pause();
    const request = encodeQuery("SELECT repeat('d', 100000)");
    const growth = await growthDuring(async () => {
      // Far more than all socket buffers on the way hold.
      let blockedAt = 0;
      for (let count = 0; count < 3_000_000 && blockedAt === 0; count++) {
        if (!deaf.socket.write(request) && deaf.socket.writableLength > 4 * MB) blockedAt = count;
      }
      const other = await login();
      expect((await other.query('SELECT 1')).rows).toEqual([['1']]);
      const queued = deaf.socket.writableLength;
      await other.query('SELECT pg_sleep(0.3)');
      // It stays queued at the client: nobody took it.
      expect(deaf.socket.writableLength).toBeGreaterThan(queued / 4);
      await other.terminate();
    });
    expect(growth).toBeLessThan(GROWTH_MAX);
    deaf.destroy();
  });

  it('ten thousand requests in one write are answered in order', async () => {
    const client = await login();
    const growth = await growthDuring(async () => {
      client.send(
        ...Array.from({ length: 10_000 }, (_, n) => [
          P('', 'SELECT $1::int'),
          B('', '', [`${n}`]),
          E(''),
          SYNC,
        ]).flat(),
      );
      for (let n = 0; n < 10_000; n++) {
        const reply = await client.readReply(20_000);
        if (reply.rows[0]?.[0] !== `${n}`)
          throw new Error(`request ${n} was answered ${JSON.stringify(reply.rows)}`);
      }
    });
    await client.terminate();
    expect(growth).toBeLessThan(GROWTH_MAX);
  });
});

const READY_IDLE = Buffer.from([0x5a, 0, 0, 0, 5, 0x49]);
