/**
 * Which proof a client is asked for, and whether the connection may carry it: the login rules, then `auth_type`.
 * Decisions only: no socket, no message. Who a client is once the proof was right is login-identity.ts.
 */
import { SCRAM_ITERATIONS, type ScramKeys } from '../auth/scram-keys.ts';
import { takesToken } from '../auth/token-identity.ts';
import type { Secret } from '../base/secret.ts';
import type { Config, LoginMethod, LoginRuleConfig, TurnstileConfig, UserConfig } from '../config/config.ts';
import { compileNames } from '../config/name-pattern.ts';
import { compileAddresses } from './login-address.ts';
import { findUser, type LoginRequest, mayEnter, showsRequiredCertificate } from './login-identity.ts';

/** How a client has to prove itself. */
export type LoginPlan =
  | PasswordPlan
  | {
      readonly kind: 'oauth';
      /** True where the proof opens the console. */
      readonly console: boolean;
    }
  | { readonly kind: 'cert' | 'trust' | 'anonymous' | 'reject' };

/** A proof that may be a password: `token` is a token or, where there is one, the static password. */
export interface PasswordPlan {
  readonly kind: 'token' | 'scram' | 'md5' | 'plain';
  /** Empty: the user is unknown, has none or lacks its certificate, goes all the way, and fails at its end. */
  readonly passwords: readonly Secret[];
  readonly console: boolean;
  /** Why no password can be right although the user has one, for the log; null when one can. */
  readonly barred: 'client_certificate' | null;
}

type RuleTest = (request: LoginRequest) => boolean;
interface Rule {
  readonly method: LoginMethod;
  readonly fits: RuleTest;
  readonly namesConsole: boolean;
}

/** The rules of one configuration, compiled. */
export class LoginRules {
  readonly #config: Config;
  readonly #rules: readonly Rule[];

  /** Throws `RangeError` with a sentence for a pattern or an address that is none. */
  constructor(config: Config) {
    this.#config = config;
    this.#rules = config.loginRules.map((row) => compileRule(row, config.admin.name));
  }

  /**
   * The proof for this client. Who is on anonymous_users is asked for none where a token would be asked for, or where
   * no rule speaks of it; a rule for another proof, or for none at all, stands.
   */
  plan(request: LoginRequest): LoginPlan {
    if (request.database === this.#config.admin.name) return this.#planConsole(request);
    const method = this.#rules.find((rule) => rule.fits(request))?.method ?? null;
    if (method === 'reject') return { kind: 'reject' };
    const byToken = method === null || method === 'jwt' || method === 'oauth';
    if (byToken && this.#isAnonymous(request.user)) return { kind: 'anonymous' };
    return this.#planMethod(method ?? this.#defaultMethod(request.user), request);
  }

  /**
   * The console takes SCRAM whatever `auth_type` says. A rule that names its database may let tokens in besides, if
   * there is an `admin_claim`; a rule that rejects counts here as everywhere.
   */
  #planConsole(request: LoginRequest): LoginPlan {
    const { admin, turnstile } = this.#config;
    const rule = this.#rules.find(
      ({ method, namesConsole, fits }) => (namesConsole || method === 'reject') && fits(request),
    );
    if (rule?.method === 'reject') return { kind: 'reject' };
    const passwords = request.user === admin.user ? [admin.password] : [];
    if (turnstile.adminClaim !== null && rule?.method === 'oauth') return { kind: 'oauth', console: true };
    const kind = turnstile.adminClaim !== null && rule?.method === 'jwt' ? 'token' : 'scram';
    return { kind, passwords, console: true, barred: null };
  }

  #defaultMethod(user: string): LoginMethod {
    const { authType } = this.#config.general;
    return authType === 'jwt' && !takesToken(user, this.#config) ? 'scram' : authType;
  }

  #planMethod(method: LoginMethod, request: LoginRequest): LoginPlan {
    switch (method) {
      case 'jwt': {
        // A password that is right for another database would tell that it is one.
        const user = findUser(request, this.#config);
        return this.#planPassword(
          'token',
          user !== null && mayEnter(user, request.database) ? user : null,
          request,
        );
      }
      case 'scram':
      case 'md5':
      case 'plain':
        return this.#planPassword(method, findUser(request, this.#config), request);
      case 'oauth':
        return { kind: 'oauth', console: false };
      case 'cert':
      case 'trust':
      case 'reject':
        return { kind: method };
      default:
        return method satisfies never;
    }
  }

  #planPassword(kind: PasswordPlan['kind'], user: UserConfig | null, request: LoginRequest): PasswordPlan {
    // Refusing at once who lacks a certificate would tell strangers which names have one.
    const barred = user !== null && !showsRequiredCertificate(user, request, this.#config);
    return {
      kind,
      passwords: barred ? [] : (user?.passwords ?? []),
      console: false,
      barred: barred ? 'client_certificate' : null,
    };
  }

  #isAnonymous(user: string): boolean {
    const { authRequired, anonymousRole, anonymousUsers } = this.#config.turnstile;
    return !authRequired && anonymousRole !== null && anonymousUsers.includes(user);
  }
}

function compileRule(row: LoginRuleConfig, consoleName: string): Rule {
  const databases = new Set(row.database);
  const isUser = compileNames(row.user);
  const isFrom = compileAddresses(row.address);
  const fits: RuleTest = (request) =>
    (databases.size === 0 || databases.has(request.database)) &&
    (row.user.length === 0 || isUser(request.user)) &&
    (row.tls === 'any' || request.encrypted === (row.tls === 'on')) &&
    (row.address.length === 0 || isFrom(request.remoteAddress));
  return { method: row.method, fits, namesConsole: databases.has(consoleName) };
}

/** True for proofs that whoever listens on the line could use again. */
export function sendsSecretInClear(plan: LoginPlan): boolean {
  return plan.kind === 'token' || plan.kind === 'plain' || plan.kind === 'oauth';
}

/** Whether such a proof may be asked for on an unencrypted connection from this address. */
export function mayAskInClear(
  remoteAddress: string,
  allow: TurnstileConfig['allowPlaintextTokens'],
): boolean {
  return allow === 'always' || (allow === 'loopback' && isLoopback(remoteAddress));
}

/** 127.0.0.0/8, ::1, 127.0.0.0/8 mapped into IPv6, and '' (a Unix socket has no address). */
export function isLoopback(remoteAddress: string): boolean {
  return /^$|^::1$|^(?:::ffff:)?127\.\d+\.\d+\.\d+$/i.test(remoteAddress);
}

/**
 * Derives the SCRAM keys of everybody who may be asked for them, so that a first login takes no longer than that
 * of an unknown user. For the start and after each change of users.toml; one password at a time.
 */
export async function deriveLoginKeys(config: Config, keys: ScramKeys): Promise<void> {
  const { admin, general, users } = config;
  const derive = async (name: string, password: Secret): Promise<unknown> =>
    keys.derive(password.reveal(), keys.saltFor(name), SCRAM_ITERATIONS);
  await derive(admin.user, admin.password);
  const usesScram =
    general.authType === 'scram' ||
    general.authType === 'jwt' ||
    config.loginRules.some(({ method }) => method === 'scram');
  if (!usesScram) return;
  for (const user of users) {
    for (const password of user.passwords) await derive(user.name, password);
  }
}
