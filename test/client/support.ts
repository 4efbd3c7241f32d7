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

/** `role:NAME` is a good token for NAME, `reject:REASON` one that is refused for it, `hang` waits for `release()`. */
export class FakeVerifier implements TokenCheck {
  readonly seen: string[] = [];
  #release: (() => void)[] = [];

  async verify(token: string): Promise<VerifiedToken> {
    this.seen.push(token);
    const [kind, value = ''] = token.split(':');
    if (kind === 'hang') await new Promise<void>((resolve) => this.#release.push(resolve));
    if (kind === 'crash') throw new TypeError(`thrown with ${token} in its text`);
    if (kind === 'reject') {
      const reason = value as TokenRejection;
      const kinds = { keys_unavailable: reason, overloaded: reason } as Record<string, 'overloaded'>;
      throw new TokenRejected(reason, kinds[reason] ?? 'invalid').describe({ alg: 'RS256', kid: 'k\n1' });
    }
    const facts = {
      issuer: null,
      subject: value,
      tokenId: null,
      keyId: 'k1',
      algorithm: 'RS256',
      expiresAtMs: 0,
    };
    return { role: value || 'alice', facts, claims: {}, keyDescription: 'fake' };
  }

  release(): void {
    for (const resolve of this.#release.splice(0)) resolve();
  }
}

export interface ConfigChanges {
  general?: Partial<Config['general']>;
  jwt?: Partial<Config['jwt']>;
  turnstile?: Partial<Config['turnstile']>;
  users?: Config['users'];
}

/** auth_type jwt with provisioning; alice (two passwords) may enter app, bob everything but has no password. */
export function loginConfig(changes: ConfigChanges = {}): Config {
  const users = changes.users ?? [
    makeUser('alice', { passwords: [new Secret('old-pw'), new Secret('alice-pw')], databases: ['app'] }),
    makeUser('bob', { allDatabases: true }),
  ];
  const config = makeConfig({
    ...(changes.jwt && { jwt: changes.jwt }),
    turnstile: { maxClients: 100, allowPlaintextTokens: 'loopback', ...changes.turnstile },
    users,
  });
  return {
    ...config,
    general: {
      host: '127.0.0.1',
      port: 0,
      authType: 'jwt',
      tlsClientRequired: false,
      clientLoginTimeoutMs: 60_000,
      ...changes.general,
    } as Config['general'],
    tcp: { keepalive: true, timeMs: 30_000, intervalMs: null, retries: null, userTimeoutMs: null },
    admin: { name: 'admin', user: 'root', password: new Secret('admin-pw') },
  };
}

export interface TestListenerOptions extends ConfigChanges {
  tls?: boolean;
  verifier?: TokenCheck | null;
  now?: () => number;
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
    this.context = {
      config: loginConfig(options),
      certificate: this.#certificate?.load() ?? null,
      verifier: options.verifier === undefined ? this.verifier : options.verifier,
      scramKeys: new ScramKeys(),
      target: this.target,
      log: { debug: record('debug'), info: record('info'), warn: record('warn'), error: record('error') },
      now: options.now ?? Date.now,
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
    await client.login({ user, password, database });
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

  load(): ServerCertificate {
    return ServerCertificate.load(this.certificatePath, this.keyPath);
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
