/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Image locks, on the same bytes as QEMU's, so that either program sees the other.
 *
 * Byte 100 + n is read-locked by who does what permission bit n says, byte 200 + n by who does not let others do it.
 * All locks are shared ones: nobody waits, and any number may hold a byte. After taking its own, a user asks whether
 * another holds the contradicting byte (as if to lock it for writing): 200 + n for what it does, 100 + n for what it
 * does not share. Taking before asking is what makes two that come at once see each other.
 *
 * A change is three steps, so that it can be a part of one over many images: prepare takes and asks, and what was held
 * stays held; then commit gives up what is needed no longer, or abort what was new.
 */
#include "file.h"

#include <base/compiler.h>
#include <errno.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#define PERM_BASE 100
#define SHARED_BASE 200
#define PERM_COUNT 4
/* How long the locks of a process that was killed are waited for. */
#define DYING_WAIT_NS 500000000u
/* Milliseconds between two looks at all processes. */
#define PAUSES_PER_LOOK 20

static const char *const perm_names[PERM_COUNT] = { "consistent read", "write", "write unchanged", "resize" };

static int change_lock(int fd, int base, unsigned bit, short type)
{
    struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_start = base + (int)bit, .l_len = 1 };
    int ret;

    do {
        ret = fcntl(fd, F_OFD_SETLK, &lock);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : 0;
}

/* 1: somebody else holds it, 0: nobody, -errno. */
static int held_by_others(int fd, int base, unsigned bit)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = base + (int)bit, .l_len = 1 };

    if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
        return -errno;
    return lock.l_type != F_UNLCK;
}

bool file_lock_supported(int fd)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

    return fcntl(fd, F_OFD_GETLK, &lock) == 0 || errno != EINVAL;
}

/* Locks those of `bits` that are not in `held`, or unlocks those that are. On failure `done` has those changed so
 * far. */
static int change_locks(int fd, int base, unsigned bits, short type, unsigned *done, struct error **errp)
{
    *done = 0;
    for (unsigned bit = 0; bit < PERM_COUNT; bit++) {
        if (!(bits & 1u << bit))
            continue;
        int ret = change_lock(fd, base, bit, type);
        if (ret < 0)
            return error_set_errno(errp, ret, "Failed to %s byte %d", type == F_UNLCK ? "unlock" : "lock",
                                   base + (int)bit);
        *done |= 1u << bit;
    }
    return 0;
}

static void hint_holder(int fd, const char *filename, uint64_t byte, bool writable, struct error **errp)
{
    struct file_holder holder;

    if (!errp || !*errp)
        return;
    if (!file_find_holder(fd, byte, &holder)) {
        if (!writable)
            error_hint(errp, "add -U to read '%s' anyway", filename);
    } else if (holder.pid == getpid()) {
        error_hint(errp, "'%s' is already in use by this process", filename);
    } else {
        error_hint(errp, "'%s' is held by process %d (%s)%s", filename, holder.pid, holder.name,
                   writable ? "" : "; add -U to read it anyway");
    }
}

/*
 * A byte is held by others. If no living process is seen to hold it, it is most likely held by one that was killed,
 * until its last requests are through and its ring is gone. Waits for that. `until`: when to give up, 0 if nothing was
 * waited for yet. Returns as held_by_others() does.
 */
static int wait_for_dying(int fd, int base, unsigned bit, uint64_t *until)
{
    const struct timespec pause = { .tv_nsec = 1000000 };
    struct file_holder holder;
    int ret = 1;

    if (!*until)
        *until = loop_now_ns() + DYING_WAIT_NS;
    while (ret == 1 && loop_now_ns() < *until) {
        /* Somebody may come and live while we wait. */
        if (file_find_holder(fd, (uint64_t)base + bit, &holder) && !holder.dying)
            break;
        for (int i = 0; ret == 1 && i < PAUSES_PER_LOOK; i++) {
            nanosleep(&pause, NULL);
            ret = held_by_others(fd, base, bit);
        }
    }
    return ret;
}

/* Does nobody hold what contradicts `bits`? */
static int check_locks(int fd, const char *filename, int base, unsigned bits, bool writable, uint64_t *until,
                       struct error **errp)
{
    const char *kind = base == SHARED_BASE ? "" : "shared ";

    for (unsigned bit = 0; bit < PERM_COUNT; bit++) {
        if (!(bits & 1u << bit))
            continue;
        int ret = held_by_others(fd, base, bit);
        if (ret == 1)
            ret = wait_for_dying(fd, base, bit, until);
        if (ret == 0)
            continue;
        ret = ret < 0 ? ret : -EAGAIN;
        error_set(errp, ret, "Failed to get %s\"%s\" lock\nIs another process using the image [%s]?", kind,
                  perm_names[bit], filename);
        if (ret == -EAGAIN)
            hint_holder(fd, filename, (uint64_t)base + bit, writable, errp);
        return ret;
    }
    return 0;
}

/* Giving up cannot conflict; a byte that stays locked by error is only too careful, and gone at the close. */
static void give_up(int fd, unsigned perm, unsigned unshared)
{
    unsigned gone;

    if (fd < 0)
        return;
    change_locks(fd, PERM_BASE, perm, F_UNLCK, &gone, NULL);
    change_locks(fd, SHARED_BASE, unshared, F_UNLCK, &gone, NULL);
}

int file_lock_prepare(int fd, const char *filename, struct file_locks *locks, unsigned perm, unsigned shared,
                      bool writable, struct error **errp)
{
    unsigned unshared = ~shared & BLK_PERM_ALL;
    unsigned new_perm = 0, new_unshared = 0;
    uint64_t until = 0;

    perm &= BLK_PERM_ALL;
    if (fd < 0) {
        locks->next_perm = perm;
        locks->next_unshared = unshared;
        return 0;
    }
    int ret = change_locks(fd, PERM_BASE, perm & ~locks->perm, F_RDLCK, &new_perm, errp);
    if (ret == 0)
        ret = change_locks(fd, SHARED_BASE, unshared & ~locks->unshared, F_RDLCK, &new_unshared, errp);
    if (ret == 0)
        ret = check_locks(fd, filename, SHARED_BASE, new_perm, writable, &until, errp);
    if (ret == 0)
        ret = check_locks(fd, filename, PERM_BASE, new_unshared, writable, &until, errp);
    if (ret < 0) {
        give_up(fd, new_perm, new_unshared);
        return ret;
    }
    locks->next_perm = perm;
    locks->next_unshared = unshared;
    return 0;
}

void file_lock_commit(int fd, struct file_locks *locks)
{
    give_up(fd, locks->perm & ~locks->next_perm, locks->unshared & ~locks->next_unshared);
    locks->perm = locks->next_perm;
    locks->unshared = locks->next_unshared;
}

void file_lock_abort(int fd, struct file_locks *locks)
{
    give_up(fd, locks->next_perm & ~locks->perm, locks->next_unshared & ~locks->unshared);
    locks->next_perm = locks->perm;
    locks->next_unshared = locks->unshared;
}

int file_lock_copy(int fd, const struct file_locks *locks, struct error **errp)
{
    unsigned done;
    int ret = change_locks(fd, PERM_BASE, locks->perm | locks->next_perm, F_RDLCK, &done, errp);

    if (ret == 0)
        ret = change_locks(fd, SHARED_BASE, locks->unshared | locks->next_unshared, F_RDLCK, &done, errp);
    return ret;
}

void file_lock_drop(int fd)
{
    struct flock lock = {
        .l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = PERM_BASE, .l_len = SHARED_BASE - PERM_BASE + PERM_COUNT
    };

    fcntl(fd, F_OFD_SETLK, &lock);
}
