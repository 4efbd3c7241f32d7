/**
 * The tour must fail where it should. Against PostgreSQL itself, which knows no tokens, and against ports that
 * misbehave, it says so step by step; that it passes against the pooler is the demo's own test.
 */
import { createServer, type Server } from 'node:net';
import { afterEach, expect, it } from 'vitest';
import { createDemoDatabase } from '../../src/demo/demo-database.ts';
import { startIssuer } from '../../src/demo/issuer.ts';
import { startPostgres } from '../../src/demo/postgres.ts';
import { freePort } from '../../src/demo/postmaster.ts';
import { runTour } from '../../src/demo/tour.ts';

const cleanups: (() => unknown)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

/** Runs the tour at a port and returns its lines. */
async function tourAt(port: number): Promise<{ passed: boolean; lines: string[] }> {
  const issuer = await startIssuer();
  cleanups.push(() => issuer.stop());
  const lines: string[] = [];
  const passed = await runTour({
    host: '127.0.0.1',
    port,
    database: 'app',
    mint: (options) => issuer.mint({ audience: 'app', ...options }),
    askReplica: async () => null,
    poolSize: 4,
    print: (line) => lines.push(line),
  });
  return { passed, lines };
}

function listen(server: Server): Promise<number> {
  cleanups.push(() => server.close());
  return new Promise((resolve) => {
    server.listen(0, '127.0.0.1', () => resolve((server.address() as { port: number }).port));
  });
}

it('against PostgreSQL itself every step that needs a token fails and no token is printed', async () => {
  const postgres = await startPostgres({ superuserPassword: 'x', replica: true });
  cleanups.push(() => postgres.stop());
  await createDemoDatabase(postgres, 'service');
  const { passed, lines } = await tourAt(postgres.primary.port);
  expect(passed).toBe(false);
  const failed = lines.filter((line) => line.includes('✗'));
  const sound = lines.filter((line) => line.includes('✓'));
  expect([sound.length, failed.length]).toEqual([5, 8]);
  expect(failed.every((line) => line.includes('28P01 password authentication failed'))).toBe(true);
  expect(lines.at(-1)).toContain('5 of 13');
  expect(lines.join('\n')).not.toMatch(/eyJ/);
});

it('where nobody listens no step passes, the refusals included', async () => {
  const { passed, lines } = await tourAt(await freePort());
  expect(passed).toBe(false);
  expect(lines.filter((line) => line.includes('✓'))).toEqual([]);
  expect(lines.filter((line) => line.includes('ECONNREFUSED')).length).toBe(13);
});

it('a port that closes every connection fails every step', async () => {
  const port = await listen(createServer((socket) => socket.destroy()));
  const { passed, lines } = await tourAt(port);
  expect(passed).toBe(false);
  expect(lines.filter((line) => line.includes('✓'))).toEqual([]);
});
