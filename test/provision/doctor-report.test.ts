/** How findings become lines and an exit code. */
import { expect, test } from 'vitest';
import { DoctorReport, listed } from '../../src/provision/doctor-report.ts';

test('only what is wrong makes a report unhealthy, and each fix stands below its finding', () => {
  const report = new DoctorReport();
  report.fine('the service user is plain');
  report.note('members of members');
  expect(report.healthy).toBe(true);
  expect(report.lines().at(-1)).toBe('nothing is wrong');
  report.wrong('it is superuser', 'ALTER ROLE service NOSUPERUSER');
  expect(report.healthy).toBe(false);
  expect(report.lines()).toEqual([
    'fine   the service user is plain',
    'note   members of members',
    'wrong  it is superuser',
    '       fix: ALTER ROLE service NOSUPERUSER',
    '1 wrong',
  ]);
});

test('control characters in a name or in a server’s words do not reach the terminal', () => {
  const report = new DoctorReport();
  report.wrong('role "a\u001b[31m\nb"', 'x\r\u0085');
  expect(report.lines().slice(0, 2)).toEqual([
    'wrong  role "a\\u{1b}[31m\\u{a}b"',
    '       fix: x\\u{d}\\u{85}',
  ]);
});

test('a long list of names is cut', () => {
  expect(listed(['a'])).toBe('"a"');
  expect(listed(Array.from({ length: 12 }, (_, index) => `r${index}`))).toMatch(/"r9" and 2 more$/);
});
