/** Keys, tokens and a small configuration for the tests of src/auth. Signs by hand, so that any header can be made. */
import { generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import type { TokenFacts } from '../../src/auth/identity.ts';
import { fingerprintOf, type KeySource } from '../../src/auth/key-source.ts';
import type { TokenRules } from '../../src/auth/token-rules.ts';
import { TokenVerifier, type VerifiedToken } from '../../src/auth/token-verifier.ts';
import { Secret } from '../../src/base/secret.ts';
import type { Config, IssuerConfig, RoleRuleConfig, UserConfig } from '../../src/config/config.ts';

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

/** Those of the `jwt_*` keys, without an audience and with no limit on a token's life. */
export const rules: TokenRules = {
  source: null,
  issuer: null,
  audiences: [],
  algorithms: ['RS256', 'ES256', 'EdDSA'],
  usernameClaim: 'sub',
  roleRules: [],
  allowedRoles: [],
  typ: null,
  allowedClients: [],
  verifiedEmail: 'claimed',
  maxLifetimeSeconds: Number.POSITIVE_INFINITY,
  leewaySeconds: 0,
  requireJti: false,
  singleUseJti: false,
  databaseClaims: ['ns', 'db', 'id'],
  accessClaim: 'a',
  permissionsClaim: 'p',
  delegation: 'actor',
};

/** A source with one key that counts how often it is asked. */
export function countingSource(key: KeyObject = rsa.publicKey, keyId = 'k1'): KeySource & { asked: number } {
  const fingerprint = fingerprintOf(key);
  return {
    asked: 0,
    async keyFor() {
      this.asked++;
      return { key, keyId, fingerprint, description: 'test key' };
    },
    keyAtHand: () => ({ key, keyId, fingerprint, description: 'test key' }),
    holds: (_keyId, wanted) => wanted === null || wanted === fingerprint,
    poll: () => Promise.resolve(),
  };
}

/** A verifier for one issuer. */
export function makeVerifier(
  more: Partial<TokenRules> = {},
  keys: KeySource = countingSource(),
): TokenVerifier {
  return new TokenVerifier({ entries: [{ rules: { ...rules, ...more }, keys }] });
}

/** What a verifier says of a token for `role`, but for what is given. */
export function verifiedAs(
  role: string,
  more: Partial<VerifiedToken> = {},
  facts: Partial<TokenFacts> = {},
): VerifiedToken {
  const claims = more.claims ?? { sub: role };
  return {
    role,
    claims,
    keyDescription: 'key',
    access: null,
    databases: [],
    permissions: null,
    certificateThumbprint: null,
    ...more,
    facts: {
      source: null,
      issuer: null,
      subject: role,
      tokenId: null,
      sessionId: null,
      keyId: null,
      algorithm: 'RS256',
      issuedAtMs: null,
      expiresAtMs: NOW_MS,
      actor: null,
      subjectRole: null,
      claims,
      payload: JSON.stringify(claims),
      ...facts,
    },
  };
}

/** A row of turnstile.issuers without a key source. */
export function makeIssuer(issuer: string, more: Partial<IssuerConfig> = {}): IssuerConfig {
  return {
    issuer,
    jwksUrl: null,
    jwksFile: null,
    publicKeyFile: null,
    discovery: false,
    jwksOrigins: [],
    jwksCacheTtlSeconds: 300,
    audiences: [],
    algorithms: [],
    usernameClaim: null,
    allowedRoles: [],
    databases: [],
    typ: null,
    allowedClients: [],
    requireVerifiedEmail: true,
    maxTokenLifetimeSeconds: null,
    caFile: null,
    ...more,
  };
}

export function makeRoleRule(claim: string, more: Partial<RoleRuleConfig> = {}): RoleRuleConfig {
  return {
    issuer: null,
    claim,
    list: false,
    stripPrefix: null,
    stripSuffix: null,
    match: null,
    addPrefix: null,
    addSuffix: null,
    ...more,
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
    identity: null,
    tlsClientCertificateRequired: null,
  };
  return { ...overrides, ...row, ...more };
}

/** The parts of a configuration that src/auth reads; the rest of it is not there. */
export function makeConfig(more: {
  jwt?: Partial<Config['jwt']>;
  turnstile?: Partial<Config['turnstile']>;
  users?: UserConfig[];
  databaseReadOnly?: boolean;
  /** Names; `app` alone by default. */
  databases?: string[];
  issuers?: IssuerConfig[];
  roleRules?: RoleRuleConfig[];
  turnstileDatabases?: Config['turnstileDatabases'];
  turnstileUsers?: Config['turnstileUsers'];
}): Config {
  const database = { ...overrides, host: '127.0.0.1', port: 5432 };
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
      jwtIssuer: null,
      maxTokenLifetimeSeconds: Number.POSITIVE_INFINITY,
      allowMissingKid: false,
      requireJti: false,
      singleUseJti: false,
      databaseClaims: ['ns', 'db', 'id'],
      databaseClaimRequired: false,
      accessClaim: 'a',
      permissionsClaim: 'p',
      delegation: 'actor',
      revocationFile: null,
      backendIdentity: 'set_role',
      ...more.turnstile,
    },
    databases: (more.databases ?? ['app']).map((name) => ({
      ...database,
      name,
      databaseName: name,
      role: 'primary',
      user: null,
      password: null,
      readOnly: more.databaseReadOnly ?? null,
    })),
    issuers: more.issuers ?? [],
    loginRules: [],
    roleRules: more.roleRules ?? [],
    claimSettings: [],
    turnstileDatabases: more.turnstileDatabases ?? [],
    turnstileUsers: more.turnstileUsers ?? [],
    users: more.users ?? [],
    admin: { name: 'admin', user: 'admin', password: new Secret('irrelevant') },
  } as unknown as Config;
}
