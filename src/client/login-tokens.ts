/**
 * The conversations by which a client proves itself with a token: as the password, where a static password may stand
 * in its place, or by OAUTHBEARER (RFC 7628). Owns the chain: what looks like a token is never compared with a
 * password, and a token that was presented and is bad ends the login. What a token is worth is decided in auth/.
 */
import { claimAt } from '../auth/claim-path.ts';
import { harmlessText } from '../auth/harmless-text.ts';
import type { Identity } from '../auth/identity.ts';
import {
  bearerToken,
  decodeOauthResponse,
  encodeOauthRefusal,
  isRefusalAcknowledged,
  notAcknowledged,
  OAUTH_MESSAGE_BYTES_MAX,
  OAUTHBEARER,
} from '../auth/oauth-bearer.ts';
import { verifyPlain } from '../auth/password.ts';
import { decodeTokenForm, isTokenShaped } from '../auth/token-form.ts';
import {
  accessOf,
  findRoleRefusal,
  identityFromToken,
  judgeAudience,
  judgeCertificate,
} from '../auth/token-identity.ts';
import { TokenRejected } from '../auth/token-rejected.ts';
import type { VerifiedToken } from '../auth/token-verifier.ts';
import type { Config } from '../config/config.ts';
import { HEADER_BYTES } from '../protocol/codes.ts';
import { decodePassword } from '../protocol/frontend-messages.ts';
import {
  encodeAuthenticationCleartextPassword,
  encodeAuthenticationSASL,
  encodeAuthenticationSASLContinue,
} from '../protocol/message-writer.ts';
import { PgError, SqlState } from '../protocol/pg-error.ts';
import { fatal, oauthFailed, passwordFailed, temporarilyUnavailable } from './login-errors.ts';
import { checkCertificate, databaseDenied } from './login-identity.ts';
import {
  byPassword,
  checkBudget,
  initialData,
  PASSWORD_MESSAGE_BYTES_MAX,
  type ProofHost,
  type Proven,
  wrongPassword,
} from './login-proofs.ts';
import type { PasswordPlan } from './login-rules.ts';

const ASK_IN_CLEAR: Buffer = encodeAuthenticationCleartextPassword();

/** Asks for one secret in clear: a token, or the user's static password. */
export function askForSecret(host: ProofHost, plan: PasswordPlan): void {
  const onSecret = (message: Buffer): void => {
    const secret = decodePassword(message, HEADER_BYTES, message.length);
    const { verifier, now } = host.context;
    // What was a good token a moment ago is one, and no password.
    const known = verifier?.recall(secret, now()) ?? null;
    if (known !== null) return host.succeed(judge(host, known, 'jwt', plan.console));
    if (isTokenShaped(secret)) {
      host.wait(verify(host, secret), (verified) => host.succeed(judge(host, verified, 'jwt', plan.console)));
      return;
    }
    checkBudget(host);
    // Compared also where there is no password: the time must not tell who has one.
    if (verifyPlain(secret, plan.passwords)) return host.succeed(byPassword(host, plan, 'plain'));
    if (plan.passwords.length > 0 || plan.barred !== null) throw wrongPassword(host, plan);
    throw noToken(secret, host.request.user);
  };
  host.ask(ASK_IN_CLEAR, PASSWORD_MESSAGE_BYTES_MAX, onSecret, 'password');
}

/** Offers OAUTHBEARER alone, as PostgreSQL does: its client takes the first mechanism that it knows. */
export function askForBearer(host: ProofHost, isConsole: boolean): void {
  host.ask(encodeAuthenticationSASL([OAUTHBEARER]), OAUTH_MESSAGE_BYTES_MAX, (message) => {
    const data = initialData(message, OAUTHBEARER);
    if (data !== null) return onBearer(host, data, isConsole);
    // The client waits for an empty challenge before it speaks (RFC 4422 section 5, PostgreSQL's auth-oauth.c).
    host.ask(encodeAuthenticationSASLContinue(''), OAUTH_MESSAGE_BYTES_MAX, (answer) => {
      onBearer(host, answer.subarray(HEADER_BYTES), isConsole);
    });
  });
}

function onBearer(host: ProofHost, response: Buffer, isConsole: boolean): void {
  const { user } = host.request;
  const auth = decodeOauthResponse(response);
  if (auth === '') {
    host.noteDiscovery();
    refuseBearer(host, oauthFailed(user, 'oauth_discovery'));
    return;
  }
  const token = bearerToken(auth);
  if (token === null) {
    const error = oauthFailed(user, 'oauth_not_bearer');
    host.noteRefusal(error);
    refuseBearer(host, error);
    return;
  }
  host.wait(
    verify(host, token),
    (verified) => host.succeed(judge(host, verified, 'oauth', isConsole)),
    (error) => {
      // Only of a bad token may the client be told that a new one would help.
      if (error.code !== SqlState.InvalidPassword) throw error;
      const refused = oauthFailed(user, error.reason ?? 'unspecified');
      host.noteRefusal(refused);
      refuseBearer(host, refused);
    },
  );
}

/** The status, the client's lone separator, and only then the error (RFC 7628 section 3.2.3). */
function refuseBearer(host: ProofHost, error: PgError): void {
  const status = encodeOauthRefusal(
    oauthIssuer(host.context.config),
    host.context.config.turnstile.oauthScope,
  );
  host.ask(encodeAuthenticationSASLContinue(status), OAUTH_MESSAGE_BYTES_MAX, (message) => {
    throw isRefusalAcknowledged(message.subarray(HEADER_BYTES)) ? error : notAcknowledged();
  });
}

function oauthIssuer(config: Config): string {
  const issuer = config.turnstile.oauthIssuer ?? config.issuers[0]?.issuer ?? config.turnstile.jwtIssuer;
  if (issuer !== null && issuer !== undefined) return issuer;
  throw fatal(
    SqlState.InternalError,
    'OAuth is not properly configured for this user',
    'oauth_issuer_missing',
  );
}

/**
 * Verifies a token, within the budgets unless its signature is remembered: a storm of bad ones from one address must
 * keep nobody else out, nor those behind the same address whose tokens are known.
 */
async function verify(host: ProofHost, token: string): Promise<VerifiedToken> {
  const { verifier, now } = host.context;
  if (verifier === null) throw temporarilyUnavailable('no_verifier');
  const { budget } = host;
  let release = (): void => {};
  let isTaken = false;
  try {
    const nowMs = now();
    if (!verifier.isVerified(token, nowMs)) {
      const started = budget.startProof(host.request.remoteAddress);
      if (started instanceof PgError) throw started;
      release = started;
    }
    const verified = await verifier.verify(token, nowMs, () => {
      isTaken = budget.takeCheck();
      return isTaken;
    });
    // Only what comes to nothing is held against the rest: many clients that come back at once are no flood.
    if (isTaken) budget.giveCheckBack();
    return verified;
  } catch (error) {
    // Anything but a rejection is a fault of the check; the token is not the better for it.
    throw error instanceof TokenRejected || error instanceof PgError
      ? error
      : new TokenRejected('verifier_failed');
  } finally {
    release();
  }
}

/** Whom a good token makes its bearer, on this connection and in this database. */
function judge(
  host: ProofHost,
  verified: VerifiedToken,
  method: 'jwt' | 'oauth',
  isConsole: boolean,
): Proven {
  const { request, context } = host;
  const { config } = context;
  const { algorithm, keyId, issuer, source } = verified.facts;
  const isListed = issuer !== null && (source !== null || issuer === config.turnstile.jwtIssuer);
  host.describeToken({
    alg: algorithm,
    kid: keyId === null ? null : harmlessText(keyId),
    iss: isListed ? harmlessText(issuer) : null,
    role: harmlessText(verified.role),
  });
  const { user: startupUser, database, certificate } = request;
  if (isConsole) {
    judgeCertificate(verified, config, certificate);
    return openConsole(verified, database, config);
  }
  const identity: Identity = identityFromToken({
    verified,
    config,
    startupUser,
    database,
    method,
    certificate,
  });
  if (identity.user !== null) checkCertificate(identity.user, request, config);
  return { identity, adminUntilMs: null };
}

/**
 * The console is a database like any other to the claims that name databases and audiences, and to the rules for
 * roles. It can end sessions, so that read-only access is none. The claim is the subject's, and no agent of his has it.
 */
function openConsole(verified: VerifiedToken, database: string, config: Config): Proven {
  const { role, facts } = verified;
  const { adminClaim } = config.turnstile;
  judgeAudience(verified, config, database);
  const isAdmin = adminClaim !== null && claimAt(facts.claims, adminClaim) === true;
  const mayBe = facts.actor === null && findRoleRefusal(role, facts.source, config) === null;
  if (!isAdmin || !mayBe || accessOf(verified, config, database) === 'ro') throw databaseDenied(database);
  const adminUser = harmlessText(role);
  return { identity: null, adminUser, adminUntilMs: facts.expiresAtMs, adminToken: facts };
}

/** Why a secret of a user without a password is no token, in the words that the verifier has for it. */
function noToken(secret: string, user: string): PgError {
  try {
    decodeTokenForm(secret, []);
  } catch (error) {
    if (error instanceof TokenRejected) return passwordFailed(user, error.reason);
  }
  return passwordFailed(user, 'malformed');
}
