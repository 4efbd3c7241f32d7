/**
 * How claims become a role: the rules of `[[turnstile.role_rules]]`, or the username claim. A rule takes the same text
 * off every value, so that no two claims become one role. Pure; which roles may enter is the role policy's.
 */
import { compileNames } from '../config/name-pattern.ts';
import { type Claims, claimAt, ownClaim } from './claim-path.ts';
import { hasLoneSurrogate } from './harmless-text.ts';
import { isRecord } from './token-form.ts';
import { TokenRejected } from './token-rejected.ts';
import type { RoleRule, TokenRules } from './token-rules.ts';

/** Longer values become no role: no name is that long, and expressions see bounded text. */
const VALUE_CHARS_MAX = 1_024;

/** The role of a token, and the rule that gave it; null stands for the username claim as it is. */
export interface RoleFromClaims {
  readonly role: string;
  readonly rule: RoleRule | null;
}

/** Throws `TokenRejected` when no claim gives a role, or one gives several. */
export function roleFromClaims(claims: Claims, rules: TokenRules): RoleFromClaims {
  const iss = ownClaim(claims, 'iss');
  const applying = rules.roleRules.filter((rule) => rule.issuer === null || rule.issuer === iss);
  if (applying.length === 0) {
    const role = claimAt(claims, rules.usernameClaim);
    if (typeof role !== 'string' || !isFitText(role)) throw new TokenRejected('bad_role_claim');
    judgeEmail(claims, rules.usernameClaim, rules);
    return { role, rule: null };
  }
  for (const rule of applying) {
    const role = roleByRule(claims, rule, rules);
    if (role === null) continue;
    judgeEmail(claims, rule.claim, rules);
    return { role, rule };
  }
  // The username claim would be a way around rules that were written to keep others out.
  throw new TokenRejected('bad_role_claim');
}

/** What a rule makes of one value; null when the value does not fit. Without a rule the value is the role. */
export function roleFromValue(value: string, rule: RoleRule | null): string | null {
  if (value.length > VALUE_CHARS_MAX && rule !== null) return null;
  if (rule === null) return isFitText(value) ? value : null;
  const prefix = rule.stripPrefix ?? '';
  const suffix = rule.stripSuffix ?? '';
  if (value.length < prefix.length + suffix.length) return null;
  if (!value.startsWith(prefix) || !value.endsWith(suffix)) return null;
  const rest = value.slice(prefix.length, value.length - suffix.length);
  const left = rule.match === null ? rest : rule.match(rest);
  if (left === null || left === '') return null;
  const role = `${rule.addPrefix ?? ''}${left}${rule.addSuffix ?? ''}`;
  return isFitText(role) ? role : null;
}

function roleByRule(claims: Claims, rule: RoleRule, rules: TokenRules): string | null {
  const value = claimAt(claims, rule.claim);
  if (typeof value === 'string') return roleFromValue(value, rule);
  if (!rule.list || !Array.isArray(value)) return null;
  if (!value.every((item) => typeof item === 'string')) throw new TokenRejected('bad_role_claim');
  const isAllowed = rules.allowedRoles.length === 0 ? () => true : compileNames(rules.allowedRoles);
  const roles = new Set<string>();
  for (const item of value as string[]) {
    const role = roleFromValue(item, rule);
    if (role !== null && isAllowed(role)) roles.add(role);
  }
  if (roles.size > 1) throw new TokenRejected('several_roles');
  return [...roles][0] ?? null;
}

/** A role from an e-mail address is as good as the address: `email_verified` (OpenID Connect Core section 5.1). */
function judgeEmail(claims: Claims, path: string, rules: TokenRules): void {
  const dot = path.includes('://') ? -1 : path.lastIndexOf('.');
  if (path.slice(dot + 1) !== 'email') return;
  const holder = dot === -1 ? claims : claimAt(claims, path.slice(0, dot));
  const verified = isRecord(holder) ? ownClaim(holder, 'email_verified') : undefined;
  if (verified === true || (verified === undefined && rules.verifiedEmail === 'claimed')) return;
  throw new TokenRejected('email_not_verified');
}

function isFitText(role: string): boolean {
  return role !== '' && !role.includes('\0') && !hasLoneSurrogate(role);
}
