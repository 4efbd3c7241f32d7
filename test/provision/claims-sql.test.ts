/** The script for signed claims: its key, and when there is none. What PostgreSQL makes of it is integration's. */
import { createHash } from 'node:crypto';
import { expect, test } from 'vitest';
import { Secret } from '../../src/base/secret.ts';
import { claimsSql } from '../../src/provision/claims-sql.ts';
import { claimsMac } from '../../src/session/claim-settings.ts';
import { load } from '../config/support.ts';

type ScriptConfig = Parameters<typeof claimsSql>[0];

function scriptConfig(key: string | null, claimsSetting = 'request.jwt.claims'): ScriptConfig {
  const config = load({}).config!;
  return {
    ...config,
    turnstile: {
      ...config.turnstile,
      claimsMacKey: key === null ? null : new Secret(key),
      claimsMacKeyId: 'k7',
      claimsSetting,
    },
  };
}

test.each([
  ['short', 'k'],
  ['of a block', 'x'.repeat(64)],
  ['longer than a block', 'x'.repeat(65)],
  ['not in ASCII', 'Schlüssel'],
])('the two blocks of a key %s make the same HMAC as the pooler', (_, key) => {
  const row = /^k7\t\\\\x([0-9a-f]{128})\t\\\\x([0-9a-f]{128})$/m.exec(claimsSql(scriptConfig(key)))!;
  const sha256 = (...parts: Buffer[]): Buffer => createHash('sha256').update(Buffer.concat(parts)).digest();
  const [inner, outer] = [row[1]!, row[2]!].map((hex) => Buffer.from(hex, 'hex')) as [Buffer, Buffer];
  const mac = sha256(outer, sha256(inner, Buffer.from('7:9|{"a":1}'))).toString('hex');
  expect(mac).toBe(claimsMac(new Secret(key), { processId: 7, backendStart: '9' }, '{"a":1}'));
});

test('the setting is the configured one, as a literal', () => {
  const script = claimsSql(scriptConfig('key', "App.o'clock"));
  expect(script).toContain("pg_catalog.current_setting('app.o''clock', true)");
});

test.each([
  ['no key', scriptConfig(null), 'turnstile.claims_mac_key is not set'],
  ['nothing to sign', scriptConfig('key', 'none'), 'turnstile.claims_setting is "none"'],
])('there is no script: %s', (_, config, message) => {
  expect(() => claimsSql(config)).toThrow(message);
});
