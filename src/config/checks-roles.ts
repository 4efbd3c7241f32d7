/**
 * How claims become roles and settings: rules that two people could share, rules that nothing reaches, and names
 * that PostgreSQL or the pooler would refuse. Knows no token and reads no file.
 */
import { type CheckContext, lengthFault, pathFault, say, voiceFor } from './check-context.ts';
import type { Config, RoleRuleConfig } from './config.ts';
import { compileRoleMatch } from './role-match.ts';

/** Reports every finding about turnstile.role_rules, turnstile.claim_settings and turnstile.users. */
export function checkRoles(config: Config, context: CheckContext): void {
  for (const index of config.roleRules.keys()) checkRoleRule(config, index, context);
  checkClaimSettings(config, context);
  checkRoleRows(config, context);
  const length = lengthFault(config.turnstile.loginGroup ?? '');
  if (length !== null) voiceFor(context, 'turnstile').fault('login_group', length);
}

function checkRoleRule(config: Config, index: number, context: CheckContext): void {
  const rule = config.roleRules[index]!;
  const label = `turnstile.role_rules[${index}]`;
  const { fault, warn, weakness } = voiceFor(context, label);
  if (rule.claim === '') return;
  const path = pathFault(rule.claim);
  if (path !== null) fault('claim', path);
  if (rule.match !== null) {
    try {
      compileRoleMatch(rule.match);
    } catch (error) {
      fault('match', (error as Error).message);
    }
  }
  const issuers = [...config.issuers.map((row) => row.issuer), config.turnstile.jwtIssuer];
  if (rule.issuer !== null && !issuers.includes(rule.issuer)) {
    fault('issuer', 'is the issuer of no row of turnstile.issuers, nor jwt_issuer');
  }
  for (const [at, earlier] of config.roleRules.slice(0, index).entries()) {
    const name = `turnstile.role_rules[${at}]`;
    if (isShadowed(earlier, rule)) return warn('claim', `has no effect: ${name} fits whenever this one does`);
    if (meet(earlier, rule) && mayMakeSame(earlier, rule)) {
      const message = `may make the same role out of another claim as ${name}, and so one out of two people: give the two different add_prefix or add_suffix`;
      return weakness('claim', message);
    }
  }
}

function meet(one: RoleRuleConfig, other: RoleRuleConfig): boolean {
  return one.issuer === null || other.issuer === null || one.issuer === other.issuer;
}

/** True when `earlier` takes every token that `later` would take. */
function isShadowed(earlier: RoleRuleConfig, later: RoleRuleConfig): boolean {
  if (earlier.claim !== later.claim || (later.list && !earlier.list)) return false;
  if (earlier.issuer !== null && earlier.issuer !== later.issuer) return false;
  return (
    (earlier.match === null || earlier.match === later.match) &&
    (earlier.stripPrefix === null || later.stripPrefix?.startsWith(earlier.stripPrefix) === true) &&
    (earlier.stripSuffix === null || later.stripSuffix?.endsWith(earlier.stripSuffix) === true) &&
    // The expression sees what the stripping has left: it is the same test only for the same rest.
    (earlier.match === null ||
      (earlier.stripPrefix === later.stripPrefix && earlier.stripSuffix === later.stripSuffix))
  );
}

type Addition = Pick<RoleRuleConfig, 'addPrefix' | 'addSuffix'>;

/** True unless what the two rules put around their results keeps the results apart. */
export function mayMakeSame(one: Addition, other: Addition): boolean {
  const [prefix, otherPrefix] = [one.addPrefix ?? '', other.addPrefix ?? ''];
  const [suffix, otherSuffix] = [one.addSuffix ?? '', other.addSuffix ?? ''];
  const prefixesMeet = prefix.startsWith(otherPrefix) || otherPrefix.startsWith(prefix);
  const suffixesMeet = suffix.endsWith(otherSuffix) || otherSuffix.endsWith(suffix);
  return prefixesMeet && suffixesMeet;
}

/** A custom setting: at least two names with dots between them (guc.c, valid_custom_variable_name). */
const SETTING = /^[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)+$/;
/** Prefixes that PostgreSQL keeps for a language of its own, and the one that is the pooler's. */
const RESERVED_CLASSES: readonly string[] = ['turnstile', 'plpgsql'];

function settingFault(setting: string): string | null {
  if (!SETTING.test(setting)) {
    return `"${setting}" must be the name of a custom setting: words with a dot between them`;
  }
  const [category] = setting.toLowerCase().split('.');
  return RESERVED_CLASSES.includes(category!) ? `"${setting}" is in the reserved class ${category}` : null;
}

function checkClaimSettings(config: Config, context: CheckContext): void {
  const { turnstile } = config;
  const payload = turnstile.claimsSetting === 'none' ? null : turnstile.claimsSetting;
  const own = voiceFor(context, 'turnstile');
  const problem = payload === null ? null : settingFault(payload);
  if (problem !== null) own.fault('claims_setting', problem);
  // PostgreSQL folds the case of a setting's name.
  const taken = new Map<string, string>();
  if (payload !== null) taken.set(payload.toLowerCase(), 'claims_setting');
  for (const [index, row] of config.claimSettings.entries()) {
    const label = `turnstile.claim_settings[${index}]`;
    const path = row.claim === '' ? null : pathFault(row.claim);
    if (path !== null) say(context, 'fault', label, 'claim', path);
    if (row.setting === '') continue;
    const unfit = settingFault(row.setting);
    const twin = taken.get(row.setting.toLowerCase());
    if (unfit !== null) say(context, 'fault', label, 'setting', unfit);
    else if (twin !== undefined) say(context, 'fault', label, 'setting', `is set for ${twin} already`);
    else taken.set(row.setting.toLowerCase(), label);
  }
}

function checkRoleRows(config: Config, context: CheckContext): void {
  const { turnstile, admin } = config;
  for (const [index, row] of config.turnstileUsers.entries()) {
    if (row.name === '') continue;
    const { fault, warn } = voiceFor(context, `turnstile.users[${index}]`);
    const length = lengthFault(row.name);
    if (length !== null) fault('name', length);
    const first = config.turnstileUsers.findIndex((other) => other.name === row.name);
    if (first !== index) fault('name', `"${row.name}" is in turnstile.users[${first}] already`);
    if (row.backendIdentity === null && !row.disabled)
      warn('name', 'has no effect: it says nothing of the role');
    if (row.disabled && row.backendIdentity !== null)
      warn('backend_identity', 'has no effect beside disabled');
    if (turnstile.reservedRoles.includes(row.name) || row.name === admin.user) {
      warn('name', `"${row.name}" is reserved: no token enters as it`);
    }
  }
}
