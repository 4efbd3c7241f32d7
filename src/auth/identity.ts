/** Who a client is once the proof was verified. Everything after login is decided from this and nothing else. */
import type { UserConfig } from '../config/config.ts';

export interface Identity {
  /** The PostgreSQL role the session runs as. */
  readonly role: string;
  readonly method: 'jwt' | 'oauth' | 'scram' | 'md5' | 'plain' | 'trust' | 'cert' | 'anonymous';
  /** The users.toml row, when the role is a static user; null for a provisioned one. */
  readonly user: UserConfig | null;
  readonly readOnly: boolean;
  /** From the token, null for every method but jwt and oauth. */
  readonly token: TokenFacts | null;
}

/** What of a verified token is kept. Never the token itself. Nothing logs `claims` or `payload`. */
export interface TokenFacts {
  /** The entry of the configuration that verified it: `issuer` of turnstile.issuers, or null for the jwt_* keys. */
  readonly source: string | null;
  readonly issuer: string | null;
  readonly subject: string | null;
  readonly tokenId: string | null;
  /** The issuer's own session, `sid` (OpenID Connect Front-Channel Logout section 3). */
  readonly sessionId: string | null;
  readonly keyId: string | null;
  /** Digest of the key itself, by which a key that was replaced under its kid is told from the old one. */
  readonly keyFingerprint?: string;
  readonly algorithm: string;
  /** `iat`, milliseconds since the epoch; null when the token has none. */
  readonly issuedAtMs: number | null;
  /** `exp`, milliseconds since the epoch. */
  readonly expiresAtMs: number;
  /** `act.sub` of a delegated token (RFC 8693 section 4.1): the session is the actor's. Null for any other. */
  readonly actor: string | null;
  /** The role of the subject of a delegated token, which must be allowed in as well; null for any other. */
  readonly subjectRole: string | null;
  readonly claims: Readonly<Record<string, unknown>>;
  /** The claims as the issuer wrote them: JSON. */
  readonly payload: string;
}
