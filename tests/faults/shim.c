/* Faults of a disk, a clock and a memory, given to a process that is started with this library in LD_PRELOAD.
 *
 * What is to fail is said in one shared page, the file of FAULTS_PAGE (see injector.py for its fields), which every
 * process of a server maps: calls on paths below FAULTS_ROOT are counted, and those of the numbers first to last fail,
 * or kill the process before or after they are made. SQLite writes from C, so a shim of Python's own calls would miss
 * what matters most.
 *
 * Where FAULTS_SHADOW names a folder, it gets what a power cut cannot take (see power.py): a copy of each file as it was
 * synced last, and the entries of each folder as of then, both by a key that no other file ever has.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { CREATE = 1, WRITE = 2, SYNC = 4, RENAME = 8, REMOVE = 16, READ = 32, ALLOCATE = 64 };
enum { OFF, FAIL, KILL_BEFORE, KILL_AFTER };

struct page {
    int64_t mode, calls, first, last, error, pid, seconds, bytes; /* set by the test */
    int64_t count, given;                                         /* counted here */
    char part[256];                                               /* what a path has to hold, too */
};

static volatile struct page *page;
static const char *root, *shadow;
static size_t root_length;

__attribute__((constructor)) static void map_page(void) {
    const char *path = getenv("FAULTS_PAGE");
    root = getenv("FAULTS_ROOT");
    shadow = getenv("FAULTS_SHADOW");
    if (!path || !root) return;
    root_length = strlen(root);
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) return;
    void *memory = mmap(NULL, sizeof(struct page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory != MAP_FAILED) page = memory;
    syscall(SYS_close, fd);
}

static void end_process(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* Count one call. Returns 0, or -1 with errno where it is to fail; *kill says to die behind it. */
static int counted(int *kill) {
    if (page->pid && page->pid != getpid()) return 0;
    int64_t number = __atomic_add_fetch(&page->count, 1, __ATOMIC_SEQ_CST);
    if (page->mode == OFF || number < page->first || number > page->last) return 0;
    __atomic_add_fetch(&page->given, 1, __ATOMIC_SEQ_CST);
    if (page->mode == KILL_BEFORE) end_process();
    if (page->mode == KILL_AFTER) { *kill = 1; return 0; }
    errno = (int)page->error;
    return -1;
}

static int on_path(int kind, const char *path, int *kill) {
    char absolute[4096];
    if (!page || !(page->calls & kind) || !path) return 0;
    if (path[0] != '/') { /* relative to the process's folder */
        if (!getcwd(absolute, sizeof absolute - 1) || strlen(absolute) + strlen(path) + 2 > sizeof absolute) return 0;
        strcat(strcat(absolute, "/"), path);
        path = absolute;
    }
    if (strncmp(path, root, root_length) || !strstr(path, (const char *)page->part)) return 0;
    return counted(kill);
}

static int on_file(int kind, int fd, int *kill) {
    char link[64] = "/proc/self/fd/", path[4096], digits[24];
    if (!page || !(page->calls & kind) || fd < 0) return 0;
    int i = sizeof digits;
    do digits[--i] = '0' + fd % 10; while (fd /= 10);
    strncat(link, digits + i, sizeof digits - i);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return path[0] == '/' ? on_path(kind, path, kill) : 0;
}

static int on_entry(int kind, int folder, const char *path, int *kill) {
    return folder == AT_FDCWD || path[0] == '/' ? on_path(kind, path, kill) : on_file(kind, folder, kill);
}

#define MADE(check, call)                  \
    int kill = 0;                          \
    if (check) return -1;                  \
    long made = (call);                    \
    if (kill) end_process();               \
    return made

static int opened(int folder, const char *path, int flags, mode_t mode) {
    int kind = flags & O_CREAT ? CREATE : (flags & O_ACCMODE) == O_RDONLY && !(flags & O_DIRECTORY) ? READ : 0;
    MADE(kind && on_entry(kind, folder, path, &kill), syscall(SYS_openat, folder, path, flags, mode));
}

#define MODE                                              \
    mode_t mode = 0;                                      \
    if (flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) {   \
        va_list more;                                     \
        va_start(more, flags);                            \
        mode = va_arg(more, mode_t);                      \
        va_end(more);                                     \
    }

int open(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE return opened(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE return opened(folder, path, flags, mode); }

ssize_t write(int fd, const void *bytes, size_t n) { MADE(on_file(WRITE, fd, &kill), syscall(SYS_write, fd, bytes, n)); }
ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) {
    MADE(on_file(WRITE, fd, &kill), syscall(SYS_pwrite64, fd, bytes, n, at));
}
ssize_t pwrite64(int fd, const void *bytes, size_t n, off_t at) { return pwrite(fd, bytes, n, at); }
ssize_t read(int fd, void *bytes, size_t n) { MADE(on_file(READ, fd, &kill), syscall(SYS_read, fd, bytes, n)); }
ssize_t pread(int fd, void *bytes, size_t n, off_t at) {
    MADE(on_file(READ, fd, &kill), syscall(SYS_pread64, fd, bytes, n, at));
}
ssize_t pread64(int fd, void *bytes, size_t n, off_t at) { return pread(fd, bytes, n, at); }
int ftruncate(int fd, off_t size) { MADE(on_file(WRITE, fd, &kill), syscall(SYS_ftruncate, fd, size)); }
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }

/* Write the key of what lies in an open folder, or of the folder for "". Returns its mode; 0 where it is gone.
 *
 * A key begins with f for a file and d for a folder; a number of an inode is used again, but not with its time of birth.
 */
int faults_key(int folder, const char *entry, char *key, size_t length) {
    struct statx at;
    int flags = AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW;
    if (syscall(SYS_statx, folder, entry, flags, STATX_TYPE | STATX_INO | STATX_BTIME, &at)) return 0;
    char kind = S_ISREG(at.stx_mode) ? 'f' : S_ISDIR(at.stx_mode) ? 'd' : 'o';
    snprintf(key, length, "%c-%x-%x-%llx-%llx-%x", kind, at.stx_dev_major, at.stx_dev_minor,
             (unsigned long long)at.stx_ino, (unsigned long long)at.stx_btime.tv_sec, at.stx_btime.tv_nsec);
    return at.stx_mode;
}

static void copy_bytes(int from, int to) {
    char bytes[1 << 16];
    ssize_t n;
    for (off_t at = 0; (n = syscall(SYS_pread64, from, bytes, sizeof bytes, at)) > 0; at += n)
        if (syscall(SYS_write, to, bytes, n) != n) abort();
}

static void copy_entries(int folder, int to) {
    char buffer[1 << 15], key[128];
    int from = syscall(SYS_openat, folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    long n;
    while ((n = syscall(SYS_getdents64, from, buffer, sizeof buffer)) > 0)
        for (char *at = buffer; at < buffer + n; at += *(unsigned short *)(at + 16)) { /* struct linux_dirent64 */
            const char *name = at + 19;
            if (!strcmp(name, ".") || !strcmp(name, "..")) continue;
            if (faults_key(folder, name, key, sizeof key)) dprintf(to, "%s/%s\n", key, name);
        }
    syscall(SYS_close, from);
}

/* Keep what has just been synced. The copy comes by a rename: another thread may end the process meanwhile. */
static void keep(int fd) {
    char link[64], key[128], new[4096], path[4096];
    int mode = shadow ? faults_key(fd, "", key, sizeof key) : 0;
    if (!S_ISREG(mode) && !S_ISDIR(mode)) return;
    snprintf(new, sizeof new, "%s/.%ld", shadow, (long)syscall(SYS_gettid));
    snprintf(path, sizeof path, "%s/%s", shadow, key);
    int to = syscall(SYS_openat, AT_FDCWD, new, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), from = fd;
    if (S_ISDIR(mode)) {
        copy_entries(fd, to);
    } else {
        if ((fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY) { /* only then: a close takes away the process's locks */
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            from = syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC, 0);
        }
        copy_bytes(from, to);
        if (from != fd) syscall(SYS_close, from);
    }
    syscall(SYS_close, to);
    if (syscall(SYS_renameat2, AT_FDCWD, new, AT_FDCWD, path, 0)) abort();
}

static int keep_path(const char *path, const struct stat *info, int kind, struct FTW *where) {
    (void)info, (void)where;
    int fd = kind == FTW_F || kind == FTW_D ? syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0) : -1;
    if (fd >= 0) { keep(fd); syscall(SYS_close, fd); }
    return 0;
}

static int synced(int number, int fd) {
    int made = syscall(number, fd);
    if (!made) keep(fd);
    return made;
}

int fsync(int fd) { MADE(on_file(SYNC, fd, &kill), synced(SYS_fsync, fd)); }
int fdatasync(int fd) { MADE(on_file(SYNC, fd, &kill), synced(SYS_fdatasync, fd)); }
void sync(void) { /* cannot fail; with a shadow only the files that are watched, as a machine may have many others */
    int kill = 0;
    on_path(SYNC, root, &kill);
    if (shadow) nftw(root, keep_path, 16, FTW_PHYS);
    else syscall(SYS_sync);
    if (kill) end_process();
}

int rename(const char *from, const char *to) {
    MADE(on_path(RENAME, to, &kill), syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}
int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    MADE(on_entry(RENAME, to_folder, to, &kill), syscall(SYS_renameat2, from_folder, from, to_folder, to, 0));
}
int unlink(const char *path) { MADE(on_path(REMOVE, path, &kill), syscall(SYS_unlinkat, AT_FDCWD, path, 0)); }
int rmdir(const char *path) { MADE(on_path(REMOVE, path, &kill), syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR)); }
int unlinkat(int folder, const char *path, int flags) {
    MADE(on_entry(REMOVE, folder, path, &kill), syscall(SYS_unlinkat, folder, path, flags));
}
int mkdir(const char *path, mode_t mode) { MADE(on_path(CREATE, path, &kill), syscall(SYS_mkdirat, AT_FDCWD, path, mode)); }
int mkdirat(int folder, const char *path, mode_t mode) {
    MADE(on_entry(CREATE, folder, path, &kill), syscall(SYS_mkdirat, folder, path, mode));
}

/* What torch allocates tensors on a CPU with. */
int posix_memalign(void **memory, size_t alignment, size_t bytes) {
    static int (*real)(void **, size_t, size_t);
    int kill = 0;
    if (page && page->calls & ALLOCATE && (int64_t)bytes >= page->bytes && counted(&kill)) return ENOMEM;
    if (!real) real = (int (*)(void **, size_t, size_t))dlsym(RTLD_NEXT, "posix_memalign");
    return real(memory, alignment, bytes);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int made = real(clock, now);
    if (!made && page && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += page->seconds;
    return made;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
