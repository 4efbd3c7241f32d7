/** Keys, tokens and a small configuration for the tests of src/auth. Signs by hand, so that any header can be made. */
import { generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import type { KeySource } from '../../src/auth/key-source.ts';
import type { TokenRules } from '../../src/auth/token-verifier.ts';
import { Secret } from '../../src/base/secret.ts';
import type { Config, UserConfig } from '../../src/config/config.ts';

export interface KeyPair {
  privateKey: KeyObject;
  publicKey: KeyObject;
}

export const rsa: KeyPair = generateKeyPairSync('rsa', { modulusLength: 2048 });
export const otherRsa: KeyPair = generateKeyPairSync('rsa', { modulusLength: 2048 });
export const p256: KeyPair = generateKeyPairSync('ec', { namedCurve: 'P-256' });
export const ed25519: KeyPair = generateKeyPairSync('ed25519');

/** A whole second, so that claims and clock can be compared to the millisecond. */
export const NOW_SECONDS = 1_800_000_000;
export const NOW_MS: number = NOW_SECONDS * 1_000;

export const encode = (value: unknown): string =>
  Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url');

/** RS256 (or EdDSA, ES256 by the key) over the two parts as they stand. */
export function signParts(header: unknown, payload: unknown, key: KeyObject = rsa.privateKey): string {
  const input = `${encode(header)}.${encode(payload)}`;
  const data = Buffer.from(input);
  const signature =
    key.asymmetricKeyType === 'ed25519'
      ? sign(null, data, key)
      : sign('sha256', data, key.asymmetricKeyType === 'ec' ? { key, dsaEncoding: 'ieee-p1363' } : key);
  return `${input}.${signature.toString('base64url')}`;
}

export const goodClaims: Record<string, unknown> = { sub: 'alice', exp: NOW_SECONDS + 300 };

/** A good RS256 token, but for what is given; a claim of `undefined` is left out. */
export function makeToken(
  claims: Record<string, unknown> = {},
  header: Record<string, unknown> = {},
  key: KeyObject = rsa.privateKey,
): string {
  return signParts({ alg: 'RS256', kid: 'k1', ...header }, { ...goodClaims, ...claims }, key);
}

export const rules: TokenRules = {
  audience: null,
  usernameClaim: 'sub',
  jwtLeewaySeconds: 0,
  jwtAlgorithms: ['RS256', 'ES256', 'EdDSA'],
};

/** A source with one key that counts how often it is asked. */
export function countingSource(key: KeyObject = rsa.publicKey): KeySource & { asked: number } {
  return {
    asked: 0,
    async keyFor() {
      this.asked++;
      return { key, keyId: 'k1', description: 'test key' };
    },
  };
}

export const toPem = (key: KeyObject): string => key.export({ type: 'spki', format: 'pem' }).toString();
export const toPrivatePem = (key: KeyObject): string =>
  key.export({ type: 'pkcs8', format: 'pem' }).toString();
export const toJwk = (key: KeyObject, more: Record<string, unknown> = {}): Record<string, unknown> => ({
  ...key.export({ format: 'jwk' }),
  ...more,
});

const overrides = {
  poolSize: null,
  minPoolSize: null,
  poolerMode: null,
  idleTimeoutMs: null,
  serverLifetimeMs: null,
  serverLifetimeJitterMs: null,
  statementTimeoutMs: null,
  lockTimeoutMs: null,
  readOnly: null,
};

export function makeUser(name: string, more: Partial<UserConfig> = {}): UserConfig {
  const row = {
    name,
    passwords: [],
    databases: [],
    allDatabases: false,
    serverUser: null,
    serverPassword: null,
  };
  return { ...overrides, ...row, ...more };
}

/** The parts of a configuration that src/auth reads; the rest of it is not there. */
export function makeConfig(more: {
  jwt?: Partial<Config['jwt']>;
  turnstile?: Partial<Config['turnstile']>;
  users?: UserConfig[];
  databaseReadOnly?: boolean;
}): Config {
  const database = { ...overrides, name: 'app', host: '127.0.0.1', port: 5432, databaseName: 'app' };
  return {
    jwt: {
      publicKeyFile: null,
      jwksUrl: null,
      jwksCacheTtlSeconds: 300,
      audience: null,
      usernameClaim: 'sub',
      serverUser: 'service',
      serverPassword: null,
      userSuffix: null,
      userAutoProvision: true,
      userAutoProvisionReadOnly: false,
      ...more.jwt,
    },
    turnstile: {
      rolePattern: /^[a-z0-9_][a-z0-9_$.@+-]{0,62}$/i,
      reservedRoles: ['postgres'],
      userMatch: 'exact',
      placeholderUsers: ['jwt'],
      allowedPrivilegedRoles: [],
      allowHttpIssuers: 'loopback',
      jwtLeewaySeconds: 0,
      jwtAlgorithms: ['RS256', 'ES256', 'EdDSA'],
      ...more.turnstile,
    },
    databases: [
      {
        ...database,
        role: 'primary',
        user: null,
        password: null,
        readOnly: more.databaseReadOnly ?? null,
      },
    ],
    users: more.users ?? [],
    admin: { name: 'admin', user: 'admin', password: new Secret('irrelevant') },
  } as unknown as Config;
}
