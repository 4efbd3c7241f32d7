/**
 * Why a presented token was refused, as a code for the log. It never holds the token, a claim or the error of a
 * library (jose attaches the claims to its errors), so it may travel freely.
 */
import { createHash } from 'node:crypto';
import { harmlessText } from './harmless-text.ts';

/** Enough to tell strangers apart in a log. */
const DIGEST_CHARS = 12;

/** Every reason a token can be refused for, with a sentence for the person who has to mend it. */
export const TokenRejection = {
  empty_token: 'no token was given',
  not_jwt: 'it is not a JWT',
  malformed: 'it is not three base64url parts that hold JSON objects',
  too_large: 'it is longer than 16 KiB',
  header_too_large: 'its header is longer than 8 KiB',
  too_deep: 'its JSON is nested too deeply',
  non_canonical: 'its base64url has padding, white space, foreign characters or stray bits',
  duplicate_member: 'a member of its JSON appears twice',
  unexpected_header:
    'its header has a member that is never accepted (zip, cty, enc, b64, crit) or of a wrong type',
  bad_typ: 'its typ is not the one that its issuer is configured with',
  unknown_issuer: 'its iss is not the issuer of turnstile.issuers or jwt_issuer',
  alg_not_allowed: 'its algorithm is not in jwt_algorithms, or not in algorithms of its issuer',
  unknown_kid: 'no key of its issuer has its kid, or it has none',
  ambiguous_key: 'several keys of its issuer share its kid, or it has no kid and the issuer several keys',
  key_alg_mismatch: 'its algorithm does not fit the key',
  bad_signature: 'its signature is not by the key',
  expired: 'it has expired',
  exp_missing: 'it has no exp',
  bad_exp: 'its exp is not a number',
  exp_out_of_range: 'its exp is not a time that can be told',
  not_yet_valid: 'its nbf is in the future',
  bad_nbf: 'its nbf is not a number',
  iat_in_future: 'its iat is in the future',
  bad_iat: 'its iat is not a number',
  lifetime_too_long: 'it lives longer than max_token_lifetime',
  bad_audience:
    'its aud is missing, malformed or names none of the audiences of its issuer or of the database',
  client_not_allowed: 'its azp or client_id is missing or not in allowed_clients',
  jti_missing: 'it has no jti',
  jti_used: 'its jti has logged in before (single_use_jti)',
  revoked: 'it is on the list of revocation_file',
  bad_role_claim:
    'no claim becomes a role: the username claim is no non-empty string, or no rule of turnstile.role_rules fits',
  several_roles: 'the list of its claim holds several allowed roles',
  email_not_verified: 'its role comes from an email that email_verified does not vouch for',
  bad_act: 'its act names no actor of the same issuer who can be a role',
  delegation_refused: 'it has act, and delegation is reject',
  bad_database_claim:
    'a claim of database_claims is neither a non-empty string nor a non-empty list of those',
  bad_access_claim: 'the claim of access_claim is neither ro nor rw',
  bad_permissions_claim: 'the claim of permissions_claim is malformed',
  bad_cnf: 'its cnf is malformed',
  certificate_mismatch: 'it is bound (cnf) to another certificate than the client shows',
  keys_unavailable: 'no verification key is at hand',
  overloaded: 'too many tokens wait for verification',
  jti_store_full: 'too many token ids are remembered (single_use_jti)',
  verifier_failed: 'the verification itself failed',
} as const;
export type TokenRejection = keyof typeof TokenRejection;

/** `invalid`: the token is bad (28P01). The other two say nothing of the token: try again (57P03, 53300). */
export type TokenRejectionKind = 'invalid' | 'keys_unavailable' | 'overloaded';

export class TokenRejected extends Error {
  override name = 'TokenRejected';
  readonly reason: TokenRejection;
  readonly kind: TokenRejectionKind;
  /** Header members for the log line, unverified, escaped and cut; null until the header was read. */
  algorithm: string | null = null;
  keyId: string | null = null;
  /** Its `iss` for the log line: as it is when the configuration names it, else a digest. Null: has none. */
  issuer: string | null = null;

  constructor(reason: TokenRejection, kind: TokenRejectionKind = 'invalid') {
    super(`token refused: ${reason}`);
    this.reason = reason;
    this.kind = kind;
  }

  /** Adds what the header claimed, for the log. */
  describe(header: { readonly alg: string; readonly kid: string | null }): this {
    this.algorithm = harmlessText(header.alg);
    this.keyId = header.kid === null ? null : harmlessText(header.kid);
    return this;
  }

  /** Adds whose token it says it is; `known` when the configuration names that issuer. */
  describeIssuer(iss: unknown, known: boolean): this {
    if (typeof iss !== 'string') return this;
    const digest = (): string => createHash('sha256').update(iss).digest('hex').slice(0, DIGEST_CHARS);
    this.issuer = known ? harmlessText(iss) : `sha256:${digest()}`;
    return this;
  }
}
