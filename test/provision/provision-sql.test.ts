/** The printed text: SQL for the three identities, quoting, and what cannot be printed. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { backendPasswordOf } from '../../src/auth/backend-identity.ts';
import { ScramKeys } from '../../src/auth/scram-keys.ts';
import { Secret } from '../../src/base/secret.ts';
import type { BackendIdentity, Config } from '../../src/config/config.ts';
import { provisionSql } from '../../src/provision/provision-sql.ts';
import { makeCertificate } from '../support/certificates.ts';
import { testConfig } from '../support/worker.ts';

const scratch = mkdtempSync(path.join(tmpdir(), 'pgturnstile-provision-'));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

const base = testConfig({ serverPort: 5432, turnstile: 'role_pattern = ".+"' });
const config: Config = {
  ...base,
  jwt: { ...base.jwt, serverUser: 'turnstile' },
  turnstile: { ...base.turnstile, backendPasswordKey: new Secret('0123456789abcdef0123456789abcdef') },
};

interface Asked {
  config?: Config;
  roles?: string[];
  database?: string | null;
  identity?: BackendIdentity | null;
}

function print({
  config: given = config,
  roles = ['alice'],
  database = null,
  identity = null,
}: Asked = {}): Promise<string> {
  return provisionSql({ config: given, roles, database, identity, scramKeys: new ScramKeys() });
}

/** The statements, without comments. */
const statements = (text: string): string[] =>
  text.split('\n').filter((line) => line !== '' && !line.startsWith('--'));

describe('the SQL', () => {
  test('set_role: the service user may become the role, has none of its rights and can grant it to nobody', async () => {
    expect(statements(await print({ roles: ['alice', 'bob'] }))).toEqual([
      'GRANT "alice" TO "turnstile" WITH INHERIT FALSE, SET TRUE, ADMIN FALSE;',
      'GRANT "bob" TO "turnstile" WITH INHERIT FALSE, SET TRUE, ADMIN FALSE;',
    ]);
  });

  test('login_map: membership that gives no rights, and nothing else', async () => {
    expect(statements(await print({ identity: 'login_map' }))).toEqual([
      'GRANT "jwt_users" TO "alice" WITH INHERIT FALSE, SET FALSE, ADMIN FALSE;',
    ]);
  });

  test('login_password: a verifier and never the password, nor the key', async () => {
    const text = await print({ identity: 'login_password' });
    expect(statements(text)).toEqual([
      expect.stringMatching(
        /^ALTER ROLE "alice" PASSWORD 'SCRAM-SHA-256\$4096:[\w+/=]{24}\$[\w+/=]{44}:[\w+/=]{44}';$/,
      ),
    ]);
    expect(text).not.toContain(backendPasswordOf(config, 'alice', 'app')!.reveal());
    expect(text).not.toContain('0123456789abcdef');
  });

  test('a name is an identifier whatever is in it, in SQL as in pg_hba.conf', async () => {
    const name = `o"dd'; DROP ROLE bob; --`;
    const turnstile = { ...config.turnstile, loginGroup: 'a "group"' };
    const text = await print({ config: { ...config, turnstile }, roles: [name], identity: 'login_map' });
    expect(statements(text)).toEqual([
      `GRANT "a ""group""" TO "o""dd'; DROP ROLE bob; --" WITH INHERIT FALSE, SET FALSE, ADMIN FALSE;`,
    ]);
    expect(text).toContain('hostssl all +"a ""group""" <address of the pooler> cert map=turnstile');
  });
});

describe('the lines for files', () => {
  test('name the common name of the certificate, close the group to other ways, and come for CloudNativePG too', async () => {
    const file = path.join(scratch, 'pooler.crt');
    writeFileSync(file, makeCertificate({ name: 'my-pooler' }).cert);
    const general = { ...config.general, tlsServerCertificate: file };
    const text = await print({ config: { ...config, general }, identity: 'login_map' });
    for (const line of [
      '--   hostssl all +jwt_users <address of the pooler> cert map=turnstile',
      '--   host all +jwt_users all reject',
      '--   turnstile my-pooler +jwt_users',
      '--   turnstile my-pooler alice',
      '--         - hostssl all +jwt_users all cert map=turnstile',
      '--         - host all +jwt_users all reject',
      '--         - turnstile my-pooler +jwt_users',
    ]) {
      expect(text.split('\n')).toContain(line);
    }
  });

  test('say what stands for it when there is no certificate to read', async () => {
    expect(await print({ identity: 'login_map' })).toContain('<common name of tls_server_certificate>');
  });
});

describe('what cannot be printed', () => {
  test.each([
    ['a role that no token may become', { roles: ['none'] }, 'role_reserved'],
    [
      'a role with a line break, which would end a comment',
      { roles: ['a\nDROP ROLE b'] },
      'role_bad_character',
    ],
    ['a role of 64 bytes', { roles: ['x'.repeat(64)] }, 'role_too_long'],
    ['a database that is not there', { database: 'nowhere' }, 'no database "nowhere"'],
    ['set_role without a service user', { config: { ...config, jwt: base.jwt } }, 'jwt_server_user'],
    [
      'login_password without a key',
      { config: { ...config, turnstile: base.turnstile }, identity: 'login_password' as const },
      'backend_password_key',
    ],
    [
      'databases that differ',
      {
        config: {
          ...config,
          turnstileDatabases: [
            { name: 'other', audiences: [], backendIdentity: 'login_map' as const, backendCluster: null },
          ],
        },
      },
      'databases differ',
    ],
  ] satisfies [string, Asked, string][])('%s is said in a sentence', async (_what, asked, part) => {
    await expect(print(asked)).rejects.toThrow(RangeError);
    await expect(print(asked)).rejects.toThrow(part);
  });

  test('databases that differ can be named', async () => {
    const turnstileDatabases = [
      { name: 'other', audiences: [], backendIdentity: 'login_map' as const, backendCluster: null },
    ];
    const text = await print({ config: { ...config, turnstileDatabases }, database: 'other' });
    expect(text).toContain('cert map=turnstile');
  });
});
