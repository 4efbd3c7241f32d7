/** Whether a configuration has to do with tokens at all, and from whom. Everybody who must know asks here. */
import type { Config } from './config.ts';

/** True when some login may be proved by a token: auth_type is jwt, or a login rule asks for jwt or oauth. */
export function usesTokens(config: Pick<Config, 'general' | 'loginRules'>): boolean {
  return (
    config.general.authType === 'jwt' ||
    config.loginRules.some((rule) => rule.method === 'jwt' || rule.method === 'oauth')
  );
}

/** True when the `jwt_*` keys name a key source of their own, beside the rows of `[[turnstile.issuers]]`. */
export function hasFlatKeySource(config: Pick<Config, 'jwt'>): boolean {
  return config.jwt.publicKeyFile !== null || config.jwt.jwksUrl !== null;
}

/** The issuer that OAUTHBEARER clients are sent to, or null: `oauth_issuer`, else the first of the list. */
export function oauthIssuerOf(config: Pick<Config, 'turnstile' | 'issuers'>): string | null {
  return config.turnstile.oauthIssuer ?? config.issuers[0]?.issuer ?? config.turnstile.jwtIssuer;
}
