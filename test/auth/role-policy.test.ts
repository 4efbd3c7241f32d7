/** Names and attributes of roles: what a good token may still not become. */
import { describe, expect, test } from 'vitest';
import {
  checkRoleAttributes,
  checkRoleName,
  type RoleAttributePolicy,
  type RoleAttributes,
  roleRefused,
} from '../../src/auth/role-policy.ts';

const policy = {
  rolePattern: /^[a-z0-9_][a-z0-9_$.@+-]{0,62}$/i,
  reservedRoles: ['postgres', 'streaming_replica'],
  adminUser: 'admin',
};
const anyName = { ...policy, rolePattern: /^/ };

describe('names', () => {
  test.each([
    'alice',
    'Alice',
    'a',
    '_x',
    'a.b@example.com',
    'a$1+2-3',
    'PUBLIC',
    'POSTGRES',
    'x'.repeat(63),
  ])('%s is fine', (role) => expect(checkRoleName(role, policy)).toBeNull());

  test.each([
    ['an empty name', '', 'role_empty'],
    ['64 bytes, which PostgreSQL would cut', 'x'.repeat(64), 'role_too_long'],
    ['32 letters of two bytes', 'é'.repeat(32), 'role_too_long'],
    ['16 emoji, cut in the middle of one', '😀'.repeat(16), 'role_too_long'],
    ['a NUL', 'a\0b', 'role_bad_character'],
    ['a line break', 'a\nb', 'role_bad_character'],
    ['a tab', 'a\tb', 'role_bad_character'],
    ['an escape sequence', 'a\u001b[31m', 'role_bad_character'],
    ['a C1 control', 'a\u0085', 'role_bad_character'],
    ['half a surrogate pair', 'a\ud800', 'role_bad_character'],
    ['none, by which SET ROLE keeps the service user', 'none', 'role_reserved'],
    ['None', 'None', 'role_reserved'],
    ['NONE', 'NONE', 'role_reserved'],
    ['public', 'public', 'role_reserved'],
    ['current_user', 'current_user', 'role_reserved'],
    ['session_user', 'session_user', 'role_reserved'],
    ['current_role', 'current_role', 'role_reserved'],
    ['user', 'user', 'role_reserved'],
    ['pg_monitor', 'pg_monitor', 'role_reserved'],
    ['pg_ alone', 'pg_', 'role_reserved'],
    ['a reserved role of the configuration', 'postgres', 'role_reserved'],
    ['the admin user', 'admin', 'role_is_admin'],
  ])('%s is refused, whatever the pattern', (_what, role, reason) => {
    expect(checkRoleName(role, anyName)).toBe(reason);
  });

  test.each([
    'a"b',
    'a\\b',
    "a'b",
    'a;b',
    'a b',
    '-a',
    '😀',
    'é',
    ' alice',
    'alice ',
  ])('%j is refused by the default pattern and fine where the pattern lets it through', (role) => {
    expect(checkRoleName(role, policy)).toBe('role_pattern');
    expect(checkRoleName(role, anyName)).toBeNull();
  });

  test('63 bytes of multibyte letters pass, so the bound is in bytes and not cut', () => {
    expect(checkRoleName(`${'é'.repeat(31)}x`, anyName)).toBeNull();
    expect(checkRoleName(`${'é'.repeat(31)}xx`, anyName)).toBe('role_too_long');
  });

  test('a pattern with the g flag gives the same answer twice', () => {
    const sticky = { ...policy, rolePattern: /^alice$/g };
    expect([1, 2, 3].map(() => checkRoleName('alice', sticky))).toEqual([null, null, null]);
  });
});

describe('attributes', () => {
  const plain: RoleAttributes = {
    canLogin: true,
    superuser: false,
    bypassRls: false,
    replication: false,
    createRole: false,
    validUntilMs: null,
    inLoginGroup: null,
  };
  const none: RoleAttributePolicy = { allowedPrivilegedRoles: [], nologinRoles: 'reject', loginGroup: null };
  test('a plain role is fine, an absent one is not', () => {
    expect(checkRoleAttributes('alice', plain, none, 0)).toBeNull();
    expect(checkRoleAttributes('alice', null, none, 0)).toBe('role_unknown');
  });

  test.each([
    'superuser',
    'bypassRls',
    'replication',
    'createRole',
  ] as const)('%s is refused unless the role is allowed by its exact name', (attribute) => {
    const role = { ...plain, [attribute]: true };
    expect(checkRoleAttributes('boss', role, none, 0)).toBe('role_privileged');
    expect(checkRoleAttributes('boss', role, { ...none, allowedPrivilegedRoles: ['Boss'] }, 0)).toBe(
      'role_privileged',
    );
    expect(checkRoleAttributes('boss', role, { ...none, allowedPrivilegedRoles: ['boss'] }, 0)).toBeNull();
  });

  test('NOLOGIN and a VALID UNTIL that has passed are refused, allowed or not', () => {
    const allowed = { ...none, allowedPrivilegedRoles: ['alice'] };
    expect(checkRoleAttributes('alice', { ...plain, canLogin: false }, allowed, 0)).toBe('role_nologin');
    expect(checkRoleAttributes('alice', { ...plain, validUntilMs: 999 }, allowed, 1_000)).toBe(
      'role_expired',
    );
    expect(checkRoleAttributes('alice', { ...plain, validUntilMs: 1_000 }, allowed, 1_000)).toBeNull();
    const never = { ...plain, validUntilMs: Number.NEGATIVE_INFINITY };
    expect(checkRoleAttributes('alice', never, allowed, 0)).toBe('role_expired');
  });

  test('a NOLOGIN role may be entered where nologin_roles says so, an expired one may not', () => {
    const allow: RoleAttributePolicy = { ...none, nologinRoles: 'allow' };
    expect(checkRoleAttributes('team', { ...plain, canLogin: false }, allow, 0)).toBeNull();
    const past = { ...plain, canLogin: false, validUntilMs: 1 };
    expect(checkRoleAttributes('team', past, allow, 2)).toBe('role_expired');
  });

  test('login_group lets its members in and nobody else, not even those it was not asked about', () => {
    const group: RoleAttributePolicy = { ...none, loginGroup: 'jwt_users' };
    expect(checkRoleAttributes('alice', { ...plain, inLoginGroup: true }, group, 0)).toBeNull();
    expect(checkRoleAttributes('alice', { ...plain, inLoginGroup: false }, group, 0)).toBe(
      'role_not_in_group',
    );
    expect(checkRoleAttributes('alice', plain, group, 0)).toBe('role_not_in_group');
    expect(checkRoleAttributes('alice', { ...plain, inLoginGroup: false }, none, 0)).toBeNull();
  });
});

test('the answer to a refused role is one sentence without control characters', () => {
  const error = roleRefused('a\u001b[31m\r\n"b', 'role_pattern');
  expect(error).toMatchObject({ code: '28000', severity: 'FATAL', reason: 'role_pattern' });
  expect(error.message).toBe(
    'role "a\\u{1b}[31m\\u{d}\\u{a}"b" is not permitted to log in through this pooler',
  );
  expect(roleRefused('x'.repeat(10_000), 'role_too_long').message.length).toBeLessThan(150);
});
