/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The completion of bash: functions that know the options of a sub-command, the words of an option's argument and the
 * keys of a format, and one that finds out which of them is asked for.
 *
 * The line is split at white space here, because bash's own words end at '=' as well. So they do where bash puts an
 * answer in: what is before the last '=' is left out of it. Without an answer bash offers the names of files.
 */
#include "completion.h"

#include <block/node.h>

#include <stdio.h>
#include <stdlib.h>

static void print_spellings(const struct img_option *options)
{
    const char *space = "";

    for (const struct img_option *option = options; option->value; option++) {
        if (img_option_has_letter(options, option)) {
            printf("%s-%c", space, option->value);
            space = " ";
        }
        if (option->name) {
            printf("%s--%s", space, option->name);
            space = " ";
        }
    }
}

static void print_options(void)
{
    printf("\n# _img_tool_options COMMAND: its options.\n_img_tool_options()\n{\n    case $1 in\n");
    for (const struct img_command *command = img_commands(); command; command = command->next) {
        printf("        %s) echo '", command->name);
        print_spellings(command->options);
        printf("' ;;\n");
    }
    printf("        *) echo '");
    print_spellings(img_global_options);
    printf("' ;;\n    esac\n}\n");
}

/* The patterns for one option: after a space its letter and name, or its name with a '='. */
static void print_patterns(const struct img_command *command, const struct img_option *option)
{
    bool optional = option->argument[0] == '[';
    const char * or = "";

    printf("        ");
    if (!optional && img_option_has_letter(command->options, option)) {
        printf("'%s -%c'", command->name, option->value);
        or = " | ";
    }
    if (option->name && !optional) {
        printf("%s'%s --%s'", or, command->name, option->name);
        or = " | ";
    }
    if (option->name)
        printf("%s'%s --%s='", or, command->name, option->name);
    printf(")");
}

static void print_argument(const struct img_command *command, const struct img_option *option)
{
    char *choices = completion_choices(option);
    bool amend;

    if (*choices) {
        print_patterns(command, option);
        printf(" echo '%s' ;;\n", choices);
    } else if (completion_wants_keys(option, &amend)) {
        print_patterns(command, option);
        printf(" echo %s ;;\n", amend ? "CHANGES" : "OPTIONS");
    }
    free(choices);
}

static void print_arguments(void)
{
    printf("\n# _img_tool_argument COMMAND OPTION: what may follow it, if that is known.\n"
           "_img_tool_argument()\n{\n    case \"$1 $2\" in\n");
    for (const struct img_command *command = img_commands(); command; command = command->next) {
        for (const struct img_option *option = command->options; option->value; option++)
            print_argument(command, option);
    }
    printf("    esac\n}\n");
}

/* One format a line, and under '' what all of them have. */
static void print_keys_of(const struct blk_driver *driver, void *arg)
{
    const bool *amend = arg;
    char *keys = driver->flags & BLK_DRIVER_FORMAT ? completion_keys(driver->name, *amend) : NULL;

    if (keys && *keys)
        printf("        '%s %s') echo '%s' ;;\n", *amend ? "CHANGES" : "OPTIONS", driver->name, keys);
    free(keys);
}

static void print_keys(void)
{
    printf("\n# _img_tool_keys OPTIONS|CHANGES FORMAT: the keys of a list key=value,...\n"
           "_img_tool_keys()\n{\n    case \"$1 $2\" in\n");
    for (int i = 0; i < 2; i++) {
        bool amend = i == 1;
        blk_driver_each(print_keys_of, &amend);
        char *keys = completion_keys(NULL, amend);
        printf("        '%s ') echo '%s' ;;\n", amend ? "CHANGES" : "OPTIONS", keys);
        free(keys);
    }
    printf("    esac\n}\n");
}

static bool takes_keys(const struct img_command *command)
{
    for (const struct img_option *option = command->options; option->value; option++) {
        bool amend;
        if (completion_wants_keys(option, &amend))
            return true;
    }
    return false;
}

/* -O, where a command has it, says which format's keys -o takes, else -f. */
static int format_option(const struct img_command *command)
{
    for (const struct img_option *option = command->options; option->value; option++) {
        if (option->value == 'O')
            return 'O';
    }
    return 'f';
}

static void print_format_options(void)
{
    printf("\n# _img_tool_format_options COMMAND: those that name the format whose keys -o takes.\n"
           "_img_tool_format_options()\n{\n    case $1 in\n");
    for (const struct img_command *command = img_commands(); command; command = command->next) {
        int value = format_option(command);
        if (!takes_keys(command))
            continue;
        printf("        %s) echo ' -%c", command->name, value);
        for (const struct img_option *option = command->options; option->value; option++) {
            if (option->value == value && option->name)
                printf(" --%s", option->name);
        }
        printf(" ' ;;\n");
    }
    printf("    esac\n}\n");
}

static void print_commands(void)
{
    printf("# Completion of img-tool for bash, made by: img-tool completion bash\n\n_img_tool_commands='");
    for (const struct img_command *command = img_commands(); command; command = command->next)
        printf("%s%s", command->name, command->next ? " " : "'\n");
}

static const char entry[] =
    "\n"
    "# _img_tool_format COMMAND WORD...: the format that the words name.\n"
    "_img_tool_format()\n"
    "{\n"
    "    local names format=''\n"
    "    names=$(_img_tool_format_options \"$1\")\n"
    "    while (($# > 1)); do\n"
    "        shift\n"
    "        [[ $names != *\" $1 \"* ]] || format=${2-}\n"
    "        [[ $1 != --*=* || $names != *\" ${1%%=*} \"* ]] || format=${1#*=}\n"
    "    done\n"
    "    echo \"$format\"\n"
    "}\n"
    "\n"
    "_img_tool()\n"
    "{\n"
    "    local line=${COMP_LINE:0:COMP_POINT} command='' word current option before='' offer\n"
    "    local -a words\n"
    "    read -ra words <<<\"$line\"\n"
    "    [[ $line != *[[:space:]] ]] || words+=('')\n"
    "    current=${words[${#words[@]} - 1]}\n"
    "    option=${words[${#words[@]} - 2]}\n"
    "    for word in \"${words[@]:1:${#words[@]}-2}\"; do\n"
    "        [[ -n $command || $word == -* ]] || command=$word\n"
    "    done\n"
    "    COMPREPLY=()\n"
    "    if [[ $current == --*=* ]]; then\n"
    "        option=${current%%=*}=\n"
    "        before=$option\n"
    "    fi\n"
    "    offer=$(_img_tool_argument \"$command\" \"$option\")\n"
    "    case $offer in\n"
    "        OPTIONS | CHANGES)\n"
    "            offer=$(_img_tool_keys \"$offer\" \"$(_img_tool_format \"$command\" \"${words[@]}\")\")\n"
    "            word=${current#\"$before\"}\n"
    "            [[ ${word##*,} != *=* ]] || return 0\n"
    "            [[ $word != *,* ]] || before+=${word%,*},\n"
    "            offer=\"${offer// /= }=\"\n"
    "            compopt -o nospace 2>/dev/null\n"
    "            ;;\n"
    "        '')\n"
    "            [[ -z $before ]] || return 0\n"
    "            [[ $current != -* ]] || offer=$(_img_tool_options \"$command\")\n"
    "            [[ $current == -* || -n $command ]] || offer=$_img_tool_commands\n"
    "            ;;\n"
    "    esac\n"
    "    [[ -n $offer ]] || return 0\n"
    "    mapfile -t COMPREPLY < <(compgen -P \"$before\" -W \"$offer\" -- \"${current#\"$before\"}\")\n"
    "    if [[ $current == *=* && $COMP_WORDBREAKS == *=* ]]; then\n"
    "        before=${current%\"${current##*=}\"}\n"
    "        COMPREPLY=(\"${COMPREPLY[@]#\"$before\"}\")\n"
    "    fi\n"
    "}\n"
    "complete -o default -F _img_tool img-tool\n";

void completion_print_bash(void)
{
    print_commands();
    print_options();
    print_arguments();
    print_keys();
    print_format_options();
    fputs(entry, stdout);
}
