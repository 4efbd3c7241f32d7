/**
 * Starts one PostgreSQL primary and one streaming replica for a test run, or takes the server that
 * INTEGRATION_DATABASE_URL names, or one in a container of the image that INTEGRATION_CONTAINER names (it takes a
 * Docker engine), and provides its address to the test files (see postgres.ts).
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestProject } from 'vitest/node';
import { startPostgres } from '../../src/demo/postgres.ts';
import { makeCertificate, type TestCertificate } from './certificates.ts';
import { HBA_LINES, type SharedPostgres } from './postgres.ts';

/** Called by vitest before the first test file; what it returns is called after the last. */
export async function setup(project: TestProject): Promise<() => Promise<void>> {
  const url = process.env['INTEGRATION_DATABASE_URL'];
  if (url) {
    project.provide('postgres', givenServer(url));
    return async () => {};
  }
  const image = process.env['INTEGRATION_CONTAINER'];
  if (image) return startContainer(project, image);
  const authority = makeCertificate({ name: 'test root authority', authority: true });
  const server = makeCertificate({ name: 'localhost', issuer: authority });
  const directory = mkdtempSync(join(tmpdir(), 'pgturnstile-test-'));
  try {
    const certFile = join(directory, 'server.crt');
    const keyFile = join(directory, 'server.key');
    writeFileSync(certFile, server.cert);
    writeFileSync(keyFile, server.key, { mode: 0o600 });
    const postgres = await startPostgres({
      replica: true,
      superuserPassword: 'test-superuser',
      ssl: { certFile, keyFile },
      hba: HBA_LINES,
      settings: { max_prepared_transactions: '10' },
    });
    project.provide('postgres', {
      primary: { host: postgres.primary.host, port: postgres.primary.port },
      replica: postgres.replica && { host: postgres.replica.host, port: postgres.replica.port },
      superuser: postgres.superuser,
      password: postgres.password,
      database: 'postgres',
      caPem: authority.cert,
      socketDirectory: postgres.socketDirectory,
    });
    return () => postgres.stop();
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/**
 * The same server as above but for the replica and the Unix socket. Fails with testcontainers' own words when no
 * Docker engine answers: it was asked for.
 */
async function startContainer(project: TestProject, image: string): Promise<() => Promise<void>> {
  const { GenericContainer, Wait } = await import('testcontainers');
  const authority = makeCertificate({ name: 'test root authority', authority: true });
  const server = makeCertificate({ name: 'localhost', issuer: authority });
  const password = 'test-superuser';
  const container = await new GenericContainer(image)
    .withEnvironment({ POSTGRES_PASSWORD: password })
    .withCopyContentToContainer([
      { content: initScript(server), target: '/docker-entrypoint-initdb.d/test.sh', mode: 0o755 },
    ])
    .withCommand(['postgres', '-c', 'max_prepared_transactions=10', '-c', 'fsync=off'])
    .withExposedPorts(5432)
    // The image's init script starts and stops a server of its own first.
    .withWaitStrategy(Wait.forLogMessage(/ready to accept connections/, 2))
    .start();
  project.provide('postgres', {
    primary: { host: container.getHost(), port: container.getMappedPort(5432) },
    replica: null,
    superuser: 'postgres',
    password,
    database: 'postgres',
    caPem: authority.cert,
    socketDirectory: null,
  });
  return async () => {
    await container.stop();
  };
}

/**
 * TLS and the lines of pg_hba.conf, for the image to run as the server's user in a fresh data directory. Clients come
 * from the engine's gateway, whose address nobody knows beforehand; the names of roles keep the lines apart.
 */
function initScript(server: TestCertificate): string {
  const hba = HBA_LINES.map((line) => line.replace('127.0.0.1/32', 'all'));
  return [
    '#!/bin/sh',
    'set -eu',
    'umask 077',
    'cd "$PGDATA"',
    `cat > server.crt <<'END'\n${server.cert.trim()}\nEND`,
    `cat > server.key <<'END'\n${server.key.trim()}\nEND`,
    `cat - pg_hba.conf > pg_hba.new <<'END'\n${hba.join('\n')}\nEND`,
    'mv pg_hba.new pg_hba.conf',
    "echo 'ssl = on' >> postgresql.conf",
    '',
  ].join('\n');
}

function givenServer(text: string): SharedPostgres {
  const url = new URL(text);
  return {
    primary: {
      host: decodeURIComponent(url.hostname).replace(/^\[|\]$/g, ''),
      port: Number(url.port || 5432),
    },
    replica: null,
    superuser: decodeURIComponent(url.username) || 'postgres',
    password: decodeURIComponent(url.password),
    database: decodeURIComponent(url.pathname.slice(1)) || 'postgres',
    caPem: null,
    socketDirectory: null,
  };
}
