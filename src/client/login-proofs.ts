/**
 * The conversations by which a client proves itself without a token: password in clear or as md5, SCRAM, certificate.
 * Each asks through its host, which owns the socket and the limits, and ends in `succeed` or in a thrown PgError.
 * Tokens are login-tokens.ts.
 */
import { randomBytes } from 'node:crypto';
import type { Identity, TokenFacts } from '../auth/identity.ts';
import { MD5_SALT_BYTES, verifyMd5, verifyPlain } from '../auth/password.ts';
import { SCRAM_MESSAGE_BYTES_MAX } from '../auth/scram-message.ts';
import { SCRAM_SHA_256, ScramServer } from '../auth/scram-server.ts';
import { assert } from '../base/assert.ts';
import { HEADER_BYTES } from '../protocol/codes.ts';
import {
  decodePassword,
  decodeSASLInitialResponse,
  decodeSASLMechanism,
} from '../protocol/frontend-messages.ts';
import {
  encodeAuthenticationCleartextPassword,
  encodeAuthenticationMD5Password,
  encodeAuthenticationSASL,
  encodeAuthenticationSASLContinue,
  encodeAuthenticationSASLFinal,
} from '../protocol/message-writer.ts';
import { type PgError, SqlState } from '../protocol/pg-error.ts';
import type { LoginBudget } from './login-budget.ts';
import type { LoginContext } from './login-contract.ts';
import { fatal, passwordFailed, rejectedByRule } from './login-errors.ts';
import { anonymousIdentity, identityFromUser, type LoginRequest } from './login-identity.ts';
import type { ResponseName } from './login-reader.ts';
import type { LoginPlan, PasswordPlan } from './login-rules.ts';

/** Declared length of a PasswordMessage; tokens end at 16 KiB, which token-form.ts sees to. */
export const PASSWORD_MESSAGE_BYTES_MAX: number = 64 * 1024;
/** Mechanism name and length beside the SCRAM text itself. */
const SASL_MESSAGE_BYTES_MAX: number = SCRAM_MESSAGE_BYTES_MAX + 64;

/** Who the client turned out to be. */
export interface Proven {
  /** Null for the console. */
  readonly identity: Identity | null;
  /** As `LoginResult` has it; null without a token. */
  readonly adminUntilMs: number | null;
  /** The token that opened the console. */
  readonly adminToken?: TokenFacts;
  /** The console's user, where it is not the startup packet's. */
  readonly adminUser?: string;
}

/** What is known of a token, for the log. */
export interface TokenTraits {
  readonly alg: string | null;
  readonly kid: string | null;
  readonly iss?: string | null;
  readonly role?: string;
}

/** The login that a conversation belongs to; implemented by `ClientLogin`. What a step throws refuses the client. */
export interface ProofHost {
  readonly context: LoginContext;
  readonly budget: LoginBudget;
  readonly request: LoginRequest;
  /**
   * Sends a request; its answer, header included and of at most `bytesMax` declared bytes, goes to `onAnswer`. `name`
   * is what an error calls it, SASL by default.
   */
  ask(request: Uint8Array, bytesMax: number, onAnswer: (message: Buffer) => void, name?: ResponseName): void;
  /**
   * Nothing may come from the client before the outcome is there. `step` runs unless the login has ended meanwhile;
   * an error refuses the client, or goes to `onError` in the form in which it would.
   */
  wait<T>(outcome: Promise<T>, step: (value: T) => void, onError?: (error: PgError) => void): void;
  /** Sends the last words of a proof that was right. */
  write(bytes: Uint8Array): void;
  /** For the log line of a refusal that may come yet. */
  describeToken(traits: TokenTraits): void;
  /** Logs and counts a refusal that the conversation itself tells the client. */
  noteRefusal(error: PgError): void;
  /** Logs a conversation that only asked where to get a token. */
  noteDiscovery(): void;
  succeed(proven: Proven): void;
}

/** Begins the conversation of every plan that is not a token's. */
export function askForProof(host: ProofHost, plan: LoginPlan): void {
  const { request, context } = host;
  switch (plan.kind) {
    case 'reject':
      throw rejectedByRule(request);
    case 'anonymous':
      host.succeed(known(anonymousIdentity(request, context.config)));
      return;
    case 'trust':
    case 'cert':
      host.succeed(known(identityFromUser(request, context.config, plan.kind)));
      return;
    default:
      assert(plan.kind !== 'oauth' && plan.kind !== 'token', 'a token has a conversation of its own');
      askForPassword(host, plan);
  }
}

function askForPassword(host: ProofHost, plan: PasswordPlan): void {
  checkBudget(host);
  if (plan.kind === 'scram') askForScram(host, plan);
  else if (plan.kind === 'md5') askForMd5(host, plan);
  else {
    const onPassword = (message: Buffer): void => {
      const password = decodePassword(message, HEADER_BYTES, message.length);
      checkBudget(host);
      if (!verifyPlain(password, plan.passwords)) throw wrongPassword(host, plan);
      host.succeed(byPassword(host, plan, 'plain'));
    };
    host.ask(encodeAuthenticationCleartextPassword(), PASSWORD_MESSAGE_BYTES_MAX, onPassword, 'password');
  }
}

function askForMd5(host: ProofHost, plan: PasswordPlan): void {
  const salt = randomBytes(MD5_SALT_BYTES);
  const onResponse = (message: Buffer): void => {
    const response = decodePassword(message, HEADER_BYTES, message.length);
    checkBudget(host);
    if (!verifyMd5(response, host.request.user, plan.passwords, salt)) throw wrongPassword(host, plan);
    host.succeed(byPassword(host, plan, 'md5'));
  };
  host.ask(encodeAuthenticationMD5Password(salt), PASSWORD_MESSAGE_BYTES_MAX, onResponse, 'password');
}

function askForScram(host: ProofHost, plan: PasswordPlan): void {
  const { user } = host.request;
  const scram = new ScramServer({ keys: host.context.scramKeys, user, passwords: plan.passwords });
  host.ask(encodeAuthenticationSASL([SCRAM_SHA_256]), SASL_MESSAGE_BYTES_MAX, (message) => {
    const data = initialData(message, SCRAM_SHA_256);
    if (data === null) {
      throw fatal(SqlState.ProtocolViolation, 'SASL initial response has no data', 'sasl_no_data');
    }
    const challenge = encodeAuthenticationSASLContinue(scram.first(data));
    host.ask(challenge, SASL_MESSAGE_BYTES_MAX, (final) => {
      checkBudget(host);
      host.wait(scram.finish(final.subarray(HEADER_BYTES)), (signature) => {
        if (signature === null) throw wrongPassword(host, plan);
        const proven = byPassword(host, plan, 'scram');
        host.write(encodeAuthenticationSASLFinal(signature));
        host.succeed(proven);
      });
    });
  });
}

/**
 * Throws FATAL 53300 when the address has failed too often to be heard. Asked again when the answer is there: else so
 * many guesses would count as one as were begun at the same time.
 */
export function checkBudget(host: ProofHost): void {
  const spent = host.budget.mayProve(host.request.remoteAddress);
  if (spent !== null) throw spent;
}

/** What a SASLInitialResponse holds for the one mechanism that was offered; null when it holds nothing. */
export function initialData(message: Buffer, mechanism: string): Buffer | null {
  // The name first: a PasswordMessage that comes here by mistake is told of the mechanism, as by PostgreSQL.
  if (decodeSASLMechanism(message, HEADER_BYTES, message.length) !== mechanism) {
    throw fatal(
      SqlState.ProtocolViolation,
      'client selected an invalid SASL authentication mechanism',
      'sasl_mechanism',
    );
  }
  return decodeSASLInitialResponse(message, HEADER_BYTES, message.length).data;
}

/** Whom a right password makes its sender. Throws what `identityFromUser` throws. */
export function byPassword(host: ProofHost, plan: PasswordPlan, method: 'scram' | 'md5' | 'plain'): Proven {
  if (plan.console) return known(null);
  return known(identityFromUser(host.request, host.context.config, method));
}

/** For a password that is wrong, or that cannot be right; the client is told the same. */
export function wrongPassword(host: ProofHost, plan: PasswordPlan): PgError {
  return passwordFailed(host.request.user, plan.barred ?? 'wrong_password');
}

function known(identity: Identity | null): Proven {
  return { identity, adminUntilMs: null };
}
