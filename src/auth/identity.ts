/** Who a client is once the proof was verified. Everything after login is decided from this and nothing else. */
import type { UserConfig } from '../config/config.ts';

export interface Identity {
  /** The PostgreSQL role the session runs as. */
  readonly role: string;
  readonly method: 'jwt' | 'scram' | 'md5' | 'plain' | 'trust';
  /** The users.toml row, when the role is a static user; null for a provisioned one. */
  readonly user: UserConfig | null;
  readonly readOnly: boolean;
  /** From the token, null for every other method. */
  readonly token: TokenFacts | null;
}

/** What of a verified token is kept. Never the token itself. */
export interface TokenFacts {
  readonly issuer: string | null;
  readonly subject: string | null;
  readonly tokenId: string | null;
  readonly keyId: string | null;
  readonly algorithm: string;
  /** `exp`, milliseconds since the epoch. */
  readonly expiresAtMs: number;
}
