// crash.so, preloaded into the engine, dies or lies at one chosen call.
//
// It counts the calls that change something below the engine's store/, from the
// moment a plan file appears (CRASH_PLAN names it) or is replaced by another
// one. A plan is a mode and the numbers of the calls to strike at, "kill 12 5":
// the process dies instead of its 12th call, and the process started after it
// instead of its 5th.
//
//	list    strike at nothing, write down every call
//	kill    SIGKILL instead of the call
//	tear    SIGKILL after half of the bytes of a write; otherwise as kill
//	after   SIGKILL when the call is done
//	eio     the call answers EIO, nothing is done
//	enospc  the call answers ENOSPC, nothing is done
//
// Every strike is a line in CRASH_PLAN.log. A plan that has no more to do is
// removed. One lock is held over the counting and over a counted call: at the
// moment of death exactly the calls with smaller numbers have been done.
//
//	gcc -O1 -shared -fPIC -o crash.so crash.c -ldl
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread int counted; // this thread is in a counted call and has the lock
static struct {
	char mode[16];
	long points[8]; // 0 ends them
	long calls;     // counted since the plan was read
	struct stat file;
	int known;
} plan;

// The plan and the log are handled by direct calls: the functions of this name
// are our own.
static int sys_open(const char *p, int flags) { return syscall(SYS_openat, AT_FDCWD, p, flags | O_CLOEXEC, 0600); }

static void sys_put(const char *path, int flags, const char *text) {
	int fd = sys_open(path, flags);
	if (fd < 0) abort();
	if (syscall(SYS_write, fd, text, strlen(text)) < 0) abort();
	syscall(SYS_close, fd);
}

// planned reads the plan when it is a new one and reports whether there is one.
static int planned(const char *path) {
	struct stat s;
	if (stat(path, &s) != 0) return plan.known = 0;
	if (plan.known && s.st_ino == plan.file.st_ino && s.st_mtim.tv_sec == plan.file.st_mtim.tv_sec &&
	    s.st_mtim.tv_nsec == plan.file.st_mtim.tv_nsec) return 1;
	char text[256] = {0};
	int fd = sys_open(path, O_RDONLY);
	if (fd < 0) return plan.known = 0;
	if (syscall(SYS_read, fd, text, sizeof text - 1) < 0) abort();
	syscall(SYS_close, fd);
	memset(&plan, 0, sizeof plan);
	int used = 0;
	if (sscanf(text, "%15s%n", plan.mode, &used) != 1) abort();
	char *at = text + used;
	for (int i = 0; i < 7; i++) plan.points[i] = strtol(at, &at, 10);
	plan.file = s;
	return plan.known = 1;
}

// next leaves the plan's remaining points to the next process.
static void next(const char *path) {
	char text[256], tmp[PATH_MAX];
	if (plan.points[1] == 0) {
		syscall(SYS_unlinkat, AT_FDCWD, path, 0);
		return;
	}
	int n = snprintf(text, sizeof text, "%s", plan.mode);
	for (int i = 1; plan.points[i]; i++) n += snprintf(text + n, sizeof text - n, " %ld", plan.points[i]);
	snprintf(tmp, sizeof tmp, "%s.next", path);
	sys_put(tmp, O_WRONLY | O_CREAT | O_TRUNC, text);
	syscall(SYS_renameat, AT_FDCWD, tmp, AT_FDCWD, path);
}

static void die(const char *path) {
	next(path);
	syscall(SYS_kill, getpid(), SIGKILL);
	for (;;) pause();
}

enum { MAKE = 0, TEAR, LAST, FAIL = -1 };

// count decides about a call on path: make it, tear it, make it and die, or
// fail with errno.
static int count(const char *file, const char *call, int dir, const char *path) {
	int err = errno;
	if (!planned(file)) return errno = err, MAKE;
	char full[2 * PATH_MAX], link[64];
	int n = 0;
	if (path[0] != '/') {
		snprintf(link, sizeof link, dir == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", dir);
		n = readlink(link, full, PATH_MAX - 1);
		if (n < 0) n = 0;
		full[n] = 0;
	}
	snprintf(full + n, sizeof full - n, n && path[0] ? "/%s" : "%s", path);
	char *below = strstr(full, "/store/");
	errno = err;
	if (!below) return MAKE;
	counted = 1;
	plan.calls++;
	int list = strcmp(plan.mode, "list") == 0;
	if (!list && plan.calls != plan.points[0]) return MAKE;
	char line[3 * PATH_MAX], name[PATH_MAX];
	snprintf(name, sizeof name, "%s.log", file);
	snprintf(line, sizeof line, "%s %ld %s %s\n", plan.mode, plan.calls, call, below + strlen("/store/"));
	sys_put(name, O_WRONLY | O_CREAT | O_APPEND, line);
	errno = err;
	if (list) return MAKE;
	if (strcmp(plan.mode, "after") == 0) return LAST;
	if (strcmp(plan.mode, "tear") == 0 && strstr(call, "write")) return TEAR;
	if (strcmp(plan.mode, "eio") && strcmp(plan.mode, "enospc")) die(file);
	next(file);
	errno = strcmp(plan.mode, "eio") == 0 ? EIO : ENOSPC;
	return FAIL;
}

// enter is count under the lock, which leave gives back.
static int enter(const char *call, int dir, const char *path) {
	const char *file = getenv("CRASH_PLAN");
	struct stat s;
	int err = errno;
	int plans = file && path && stat(file, &s) == 0;
	errno = err;
	if (!plans) return MAKE;
	pthread_mutex_lock(&lock);
	int r = count(file, call, dir, path);
	if (!counted) pthread_mutex_unlock(&lock);
	return r;
}

static void leave(void) {
	if (!counted) return;
	counted = 0;
	pthread_mutex_unlock(&lock);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CALL(type, name, dir, path, args)                                        \
	static __typeof__(&name) real;                                               \
	if (!real) real = REAL(name);                                                \
	int what = enter(#name, dir, path);                                          \
	type r = what == FAIL ? -1 : real args;                                      \
	if (what == LAST) die(getenv("CRASH_PLAN"));                                 \
	leave();                                                                     \
	return r

// WRITE is CALL for what can be torn.
#define WRITE(name, fd, whole, half)                                             \
	static __typeof__(&name) real;                                               \
	if (!real) real = REAL(name);                                                \
	int what = fd > 2 ? enter(#name, fd, "") : MAKE;                             \
	ssize_t r = what == FAIL ? -1 : what == TEAR ? real half : real whole;       \
	if (what == LAST || what == TEAR) die(getenv("CRASH_PLAN"));                 \
	leave();                                                                     \
	return r

ssize_t write(int fd, const void *b, size_t n) { WRITE(write, fd, (fd, b, n), (fd, b, n / 2)); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { WRITE(pwrite, fd, (fd, b, n, o), (fd, b, n / 2, o)); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) { WRITE(pwrite64, fd, (fd, b, n, o), (fd, b, n / 2, o)); }
ssize_t writev(int fd, const struct iovec *v, int n) { WRITE(writev, fd, (fd, v, n), (fd, v, n / 2)); }

int fsync(int fd) { CALL(int, fsync, fd, "", (fd)); }
int fdatasync(int fd) { CALL(int, fdatasync, fd, "", (fd)); }
int ftruncate(int fd, off_t n) { CALL(int, ftruncate, fd, "", (fd, n)); }
int ftruncate64(int fd, off64_t n) { CALL(int, ftruncate64, fd, "", (fd, n)); }
int truncate(const char *p, off_t n) { CALL(int, truncate, AT_FDCWD, p, (p, n)); }
int mkdir(const char *p, mode_t m) { CALL(int, mkdir, AT_FDCWD, p, (p, m)); }
int rmdir(const char *p) { CALL(int, rmdir, AT_FDCWD, p, (p)); }
int unlink(const char *p) { CALL(int, unlink, AT_FDCWD, p, (p)); }
int unlinkat(int d, const char *p, int f) { CALL(int, unlinkat, d, p, (d, p, f)); }
int remove(const char *p) { CALL(int, remove, AT_FDCWD, p, (p)); }
int rename(const char *a, const char *b) { CALL(int, rename, AT_FDCWD, b, (a, b)); }
int link(const char *a, const char *b) { CALL(int, link, AT_FDCWD, b, (a, b)); }
int linkat(int c, const char *a, int d, const char *b, int f) { CALL(int, linkat, d, b, (c, a, d, b, f)); }
int symlink(const char *a, const char *b) { CALL(int, symlink, AT_FDCWD, b, (a, b)); }

// Opening counts when it may create or cut a file.
#define CHANGES(flags) ((flags) & (O_CREAT | O_TRUNC))
#define OPEN(name, dir, args)                                                    \
	mode_t m = 0;                                                                \
	if (flags & O_CREAT) {                                                       \
		va_list v;                                                               \
		va_start(v, flags);                                                      \
		m = va_arg(v, mode_t);                                                   \
		va_end(v);                                                               \
	}                                                                            \
	CALL(int, name, dir, CHANGES(flags) ? p : NULL, args)

int open(const char *p, int flags, ...) { OPEN(open, AT_FDCWD, (p, flags, m)); }
int open64(const char *p, int flags, ...) { OPEN(open64, AT_FDCWD, (p, flags, m)); }
int openat(int d, const char *p, int flags, ...) { OPEN(openat, d, (d, p, flags, m)); }
int creat(const char *p, mode_t m) { CALL(int, creat, AT_FDCWD, p, (p, m)); }

// The engine renames without replacing by number: libc had no such function.
long syscall(long number, ...) {
	long a[6];
	va_list v;
	va_start(v, number);
	for (int i = 0; i < 6; i++) a[i] = va_arg(v, long);
	va_end(v);
	CALL(long, syscall, a[2], number == SYS_renameat2 ? (const char *)a[3] : NULL,
		(number, a[0], a[1], a[2], a[3], a[4], a[5]));
}
