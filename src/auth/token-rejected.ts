/**
 * Why a presented token was refused, as a code for the log. It never holds the token, a claim or the error of a
 * library (jose attaches the claims to its errors), so it may travel freely.
 */
import { harmlessText } from './harmless-text.ts';

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
  alg_not_allowed: 'its algorithm is not in jwt_algorithms',
  unknown_kid: 'no key of the JWKS has its kid, or it has none',
  ambiguous_key: 'several keys of the JWKS share its kid',
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
  bad_audience: 'its aud is missing, malformed or names another audience than jwt_audience',
  bad_role_claim: 'the claim of jwt_username_claim is missing or is not a non-empty string',
  keys_unavailable: 'no verification key is at hand',
  overloaded: 'too many tokens wait for verification',
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
}
