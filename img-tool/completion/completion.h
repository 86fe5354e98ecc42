/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the three shells' completions are made of. Strings are the caller's to free. */
#pragma once

#include "../command.h"

#include <stdbool.h>

/* The words that an option's argument may be, with spaces between; "" where they are not known, as of a file's name. */
char *completion_choices(const struct img_option *option);

/* Is the argument a list key=value,...: of the format of a new image, or (`amend`) of changes to one? */
bool completion_wants_keys(const struct img_option *option, bool *amend);
/* The keys of such a list, with spaces between: those of one format, or (NULL) of all of them. */
char *completion_keys(const char *format, bool amend);
/* The formats, with spaces between. */
char *completion_formats(void);

/* What a command is for, in one sentence without its full stop. */
char *completion_summary(const struct img_command *command);

void completion_print_bash(void);
void completion_print_fish(void);
void completion_print_zsh(void);
