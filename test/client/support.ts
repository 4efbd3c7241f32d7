/** A real listener on 127.0.0.1 with a fake token check and a target that welcomes everybody, for login tests. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ScramKeys } from '../../src/auth/scram-keys.ts';
import { TokenRejected, type TokenRejection } from '../../src/auth/token-rejected.ts';
import type { VerifiedToken } from '../../src/auth/token-verifier.ts';
import { Secret } from '../../src/base/secret.ts';
import { Listener } from '../../src/client/listener.ts';
import type { LoginContext, LoginResult, LoginTarget, TokenCheck } from '../../src/client/login-contract.ts';
import type { Config } from '../../src/config/config.ts';
import { ServerCertificate } from '../../src/net/tls.ts';
import { TxStatus } from '../../src/protocol/codes.ts';
import {
  encodeAuthenticationOk,
  encodeBackendKeyData,
  encodeReadyForQuery,
} from '../../src/protocol/message-writer.ts';
import { makeConfig, makeUser } from '../auth/support.ts';
import { makeCertificate } from '../support/certificates.ts';
import { ScriptedClient } from '../support/scripted-client.ts';

export interface LogLine {
  level: string;
  event: string;
  fields: Record<string, unknown>;
}

/** Takes logins and cancels as a pooler would, and remembers them. */
export class RecordingTarget implements LoginTarget {
  readonly results: LoginResult[] = [];
  readonly cancels: { processId: number; secret: Buffer }[] = [];
  sessionCount = 0;
  /** What `onCancel` waits for. */
  cancelled: Promise<void> = Promise.resolve();

  onLogin(result: LoginResult): void {
    this.results.push(result);
    this.sessionCount++;
    result.wire.setHandler({ onBytes() {}, onDrain() {}, onClose: () => this.sessionCount-- });
    result.wire.write(
      Buffer.concat([
        encodeAuthenticationOk(),
        encodeBackendKeyData(1, Buffer.alloc(4)),
        encodeReadyForQuery(TxStatus.Idle),
      ]),
    );
  }

  onCancel(processId: number, secret: Buffer): Promise<void> {
    this.cancels.push({ processId, secret });
    return this.cancelled;
  }
}

/**
 * A secret that is taken for a token: `role:NAME` is a good one for NAME, `reject:REASON` one that is refused for it,
 * `hang` waits for `release()`. What has no colon stays as it is, and so is no token.
 */
export function fakeToken(text: string): string {
  if (!text.includes(':')) return text;
  const part = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url');
  return `${part({ alg: 'RS256' })}.${part({ fake: text })}.c2ln`;
}

function textOf(token: string): string {
  const payload = token.split('.')[1] ?? '';
  return (JSON.parse(Buffer.from(payload, 'base64url').toString()) as { fake: string }).fake;
}

/** Verifies what `fakeToken` makes, and remembers what it was asked for. */
export class FakeVerifier implements TokenCheck {
  readonly seen: string[] = [];
  /** Texts whose signature counts as remembered. */
  readonly remembered: Set<string> = new Set();
  /** Claims of every token, and the certificate that it is bound to. */
  claims: Record<string, unknown> = {};
  thumbprint: string | null = null;
  #release: (() => void)[] = [];

  /** What the short way says of a secret; by default nothing is at hand, and every token takes the long one. */
  onRecall: (secret: string) => VerifiedToken | null = () => null;

  recall(secret: string): VerifiedToken | null {
    return this.onRecall(secret);
  }

  isVerified(token: string): boolean {
    return this.remembered.has(textOf(token));
  }

  async verify(token: string): Promise<VerifiedToken> {
    const text = textOf(token);
    this.seen.push(text);
    const [kind, value = ''] = text.split(':');
    if (kind === 'hang') await new Promise<void>((resolve) => this.#release.push(resolve));
    if (kind === 'crash') throw new TypeError(`thrown with ${text} in its text`);
    if (kind === 'reject') {
      const reason = value as TokenRejection;
      const kinds = { keys_unavailable: reason, overloaded: reason } as Record<string, 'overloaded'>;
      throw new TokenRejected(reason, kinds[reason] ?? 'invalid').describe({ alg: 'RS256', kid: 'k\n1' });
    }
    return fakeVerified(value || 'alice', this.claims, this.thumbprint);
  }

  release(): void {
    for (const resolve of this.#release.splice(0)) resolve();
  }
}

export function fakeVerified(
  role: string,
  claims: Record<string, unknown>,
  thumbprint: string | null,
): VerifiedToken {
  return {
    role,
    facts: {
      source: null,
      issuer: null,
      subject: role,
      tokenId: null,
      sessionId: null,
      keyId: 'k1',
      algorithm: 'RS256',
      issuedAtMs: null,
      expiresAtMs: 4_000_000_000_000,
      actor: null,
      subjectRole: null,
      claims,
      payload: JSON.stringify(claims),
    },
    delegation: null,
    databases: [],
    access: null,
    permissions: null,
    certificateThumbprint: thumbprint,
    keyDescription: 'fake',
  } as unknown as VerifiedToken;
}

export interface ConfigChanges {
  general?: Partial<Config['general']>;
  jwt?: Partial<Config['jwt']>;
  turnstile?: Partial<Config['turnstile']>;
  users?: Config['users'];
  loginRules?: Config['loginRules'];
  issuers?: Config['issuers'];
}

/** auth_type jwt with provisioning; alice (two passwords) may enter app, bob everything but has no password. */
export function loginConfig(changes: ConfigChanges = {}): Config {
  const users = changes.users ?? [
    makeUser('alice', { passwords: [new Secret('old-pw'), new Secret('alice-pw')], databases: ['app'] }),
    makeUser('bob', { allDatabases: true }),
  ];
  const config = makeConfig({
    ...(changes.jwt && { jwt: changes.jwt }),
    turnstile: {
      maxClients: 100,
      allowPlaintextTokens: 'loopback',
      jwtIssuer: null,
      authRequired: true,
      anonymousRole: null,
      anonymousUsers: [],
      adminClaim: null,
      oauthIssuer: null,
      oauthScope: 'openid',
      maxLoginsPerAddress: 1_000,
      failedLoginsPerAddress: Number.POSITIVE_INFINITY,
      tokenChecksPerSecond: Number.POSITIVE_INFINITY,
      databaseClaims: ['ns', 'db', 'id'],
      ...changes.turnstile,
    },
    users,
  });
  return {
    ...config,
    issuers: changes.issuers ?? [],
    loginRules: changes.loginRules ?? [],
    roleRules: [],
    claimSettings: [],
    turnstileDatabases: [],
    turnstileUsers: [],
    general: {
      host: '127.0.0.1',
      port: 0,
      authType: 'jwt',
      tlsClientRequired: false,
      tlsClientCaCertificate: null,
      clientLoginTimeoutMs: 60_000,
      ...changes.general,
    } as Config['general'],
    tcp: { keepalive: true, timeMs: 30_000, intervalMs: null, retries: null, userTimeoutMs: null },
    admin: { name: 'admin', user: 'root', password: new Secret('admin-pw') },
  };
}

export interface TestListenerOptions extends ConfigChanges {
  tls?: boolean;
  /** Certificates (PEM) that clients' certificates must lead to; needs `tls`. */
  clientCa?: string;
  verifier?: TokenCheck | null;
  now?: () => number;
  clock?: () => number;
}

export class TestListener {
  readonly target: RecordingTarget = new RecordingTarget();
  readonly verifier: FakeVerifier = new FakeVerifier();
  readonly log: LogLine[] = [];
  readonly listener: Listener;
  readonly context: LoginContext;
  readonly #clients: ScriptedClient[] = [];
  readonly #certificate: CertificateFiles | null;
  port = 0;

  private constructor(options: TestListenerOptions) {
    this.#certificate = options.tls === true ? new CertificateFiles() : null;
    const record =
      (level: string) =>
      (fields: object, event: string): void => {
        this.log.push({ level, event, fields: fields as Record<string, unknown> });
      };
    const caPath =
      options.clientCa === undefined ? null : this.#certificate?.writeAuthority(options.clientCa);
    const general = { ...options.general, tlsClientCaCertificate: caPath ?? null };
    this.context = {
      config: loginConfig({ ...options, general }),
      certificate: this.#certificate?.load(caPath ?? null) ?? null,
      verifier: options.verifier === undefined ? this.verifier : options.verifier,
      scramKeys: new ScramKeys(),
      target: this.target,
      log: { debug: record('debug'), info: record('info'), warn: record('warn'), error: record('error') },
      now: options.now ?? Date.now,
      ...(options.clock && { clock: options.clock }),
    };
    this.listener = new Listener(this.context);
  }

  static async start(options: TestListenerOptions = {}): Promise<TestListener> {
    const started = new TestListener(options);
    started.port = (await started.listener.listen()).port;
    return started;
  }

  async connect(): Promise<ScriptedClient> {
    const client = await ScriptedClient.connect({ port: this.port });
    this.#clients.push(client);
    return client;
  }

  /** A client that has sent its startup packet. */
  async connectAs(
    user: string,
    database = 'app',
    more: Record<string, string> = {},
  ): Promise<ScriptedClient> {
    const client = await this.connect();
    client.sendStartup({ user, database, ...more });
    return client;
  }

  /** A whole login; the last result of the target belongs to it. */
  async login(user: string, password: string, database = 'app'): Promise<LoginResult> {
    const client = await this.connect();
    await client.login({ user, password: fakeToken(password), database });
    return this.target.results.at(-1) as LoginResult;
  }

  /** The lines that are not debug. */
  get loudLines(): LogLine[] {
    return this.log.filter(({ level }) => level !== 'debug');
  }

  close(): void {
    this.listener.stop();
    for (const client of this.#clients) client.destroy();
    for (const { wire } of this.target.results) wire.destroy();
    this.#certificate?.remove();
  }
}

/** A self-signed certificate in a directory of its own. */
export class CertificateFiles {
  readonly directory: string = mkdtempSync(join(tmpdir(), 'pgturnstile-tls-'));
  readonly certificatePath: string = join(this.directory, 'server.crt');
  readonly keyPath: string = join(this.directory, 'server.key');

  constructor(name = 'localhost') {
    this.write(name);
  }

  /** Replaces both files. */
  write(name: string): void {
    const { cert, key } = makeCertificate({ name });
    writeFileSync(this.certificatePath, cert);
    writeFileSync(this.keyPath, key, { mode: 0o600 });
  }

  /** Writes the authorities for certificates of clients and returns their path. */
  writeAuthority(pem: string): string {
    const path = join(this.directory, 'clients.crt');
    writeFileSync(path, pem);
    return path;
  }

  load(clientCaPath: string | null = null): ServerCertificate {
    return ServerCertificate.load(this.certificatePath, this.keyPath, clientCaPath);
  }

  remove(): void {
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** Waits until the condition holds, turn by turn of the event loop; throws after two seconds. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  const startedAtMs = performance.now();
  while (!condition()) {
    if (performance.now() - startedAtMs > 2_000) throw new Error(`${what} did not happen`);
    await new Promise((resolve) => setImmediate(resolve));
  }
}
