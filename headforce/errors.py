"""Every way headforce says no: one exception type, one code for each reason, one catalogue.

A code is stable and can be searched for. The catalogue says what the code means and what to do; the exception says
what was found and what was needed in this case.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What a code means, what a user can do about it, and how it usually comes about."""

    meaning: str
    remedy: str
    cause: str


CATALOGUE: dict[str, Entry] = {
    # Policies: the rules and the files they are written in.
    "HF-RULE-SYNTAX": Entry(
        "The text of a rule cannot be read.",
        "Write operators as name(arguments), join them with | or &, and attach a position map to one with @.",
        "A missing bracket or comma, or a word that is no operator call, in a rule or in a file.",
    ),
    "HF-OP-UNKNOWN": Entry(
        "A rule names an operator or a position map that does not exist.",
        "Use one of the names that the message lists; a plugin's operators appear once it is installed.",
        "A misspelt name, or a policy made with a package of operators that is not installed here.",
    ),
    "HF-OP-ARG": Entry(
        "An operator or a map got an argument it cannot take.",
        "The message names the argument; docs/policy.md lists what each operator takes.",
        "A number out of range, an argument that the operator does not have, or one left out.",
    ),
    "HF-RULE-FORM": Entry(
        "The parts of a rule do not go together.",
        "A map goes on one operator, @contiguous on the whole rule, and evicted(NAME) names one operator of the rule.",
        "Two maps on one operand, @contiguous inside a larger rule, a store without a source, or two of one name.",
    ),
    "HF-POLICY-FILE": Entry(
        "A policy file cannot be read, or it is not a policy file.",
        "A policy file is YAML or JSON whose first key is `headforce: 1`.",
        "A wrong path, YAML that does not parse, or a file that was made for something else.",
    ),
    "HF-POLICY-KEY": Entry(
        "A policy file has a key that this version does not act on.",
        "Remove the key, or correct it to the name the message suggests. Keys are never ignored.",
        "A misspelt key, or a file of a newer version.",
    ),
    "HF-POLICY-VALUE": Entry(
        "A value in a policy is of the wrong type or out of range.",
        "The message names the key, what was found and what is allowed.",
        "A class that is not defined, a head named twice, a count of 0, or text where a number belongs.",
    ),
    "HF-POLICY-SHAPE": Entry(
        "A policy names a layer or a head that the model does not have, or it was made for a model of another shape.",
        "Count layers and heads from 0, and use a policy, or labels, made for a model of this shape.",
        "A policy, or a label file, of a model with more or fewer layers or heads.",
    ),
    "HF-UNBOUNDED": Entry(
        "A rule can keep more and more frames, so no cache is large enough for it.",
        "Give the policy a `horizon` (the most frames of a stream), or bound the rule, for example with last=.",
        "everything(), or a stride without last=, in a policy without a horizon.",
    ),
    "HF-HORIZON": Entry(
        "A stream went past the horizon of its policy.",
        "Reset the stream, or give the policy a larger `horizon`.",
        "A video longer than the policy was made for, or indices that were never reset between two videos.",
    ),
    "HF-POSITION": Entry(
        "A query would see a frame at a distance outside the policy's `position_range`.",
        "Attach collapse() or clamp() to the operator, use @contiguous, or widen `position_range`.",
        "A sink or a long stride in a long video, seen at its true distance.",
    ),
    "HF-CLASSIFY": Entry(
        "Heads were to be classified by what they attend to, and the numbers or the counts do not allow it.",
        "Ask for at most as many dummy heads as the model has, and see that attention gives finite masses.",
        "More dummy heads asked for than there are, attention that gives NaN, or a prompt switch too early.",
    ),
    "HF-SEGMENTS": Entry(
        "A rule cuts frames into segments or cells, and the frames of this model do not come out even.",
        "Choose a number that divides the tokens of a frame, and cells that divide its height and width.",
        "A number of segments or a cell that does not divide the tokens, or the grid, of a frame.",
    ),
    "HF-SCORE": Entry(
        "A selection needs a score that cannot be had: nobody registered it, or it does not apply to its candidates.",
        "Use a registered score (docs/policy.md lists them), or register one with the decorator @score.",
        "A misspelt score, a score by the next frame where that may be gone, or keys that are NaN.",
    ),
    "HF-NATIVE": Entry(
        "What the unmodified model reads is not known, or is not what its adapter says.",
        "A prepared model: use a policy without native() (a `default` that says what is read), or give it an adapter "
        "whose rule is its own. Without a model: pass the rule as `native` (on the command line: --native RULE).",
        "A policy without a default on the command line, or an adapter whose rule is not what the graph reads.",
    ),
    "HF-DECISION": Entry(
        "A rule with state was asked for a decision that was never recorded.",
        "Record a decision for every commit of the stream before reading past it.",
        "A stream was begun without a decider, or a record was cut short; a store of a plugin lacks its maker.",
    ),
    # Streams: the events that turn passes into history.
    "HF-SCHEDULE": Entry(
        "A schedule of chunks cannot be read.",
        "Write chunk sizes in frames, for example 3x14 (fourteen chunks of 3) or 1,3x7,2.",
        "Text that is no list of chunk sizes, or a chunk of no frames.",
    ),
    "HF-CLOCK": Entry(
        "The position of a pass in the stream is not known, or contradicts itself.",
        "The written range and the query start must move together, without a gap; an adapter may supply both. "
        "Passes that ran uncompiled (a recompile limit) leave a gap too, unless the model was prepared. A cache whose "
        "`global_end_index` is 0 begins a video: the model's code moves it on, or leaves it out of the cache.",
        "A pass that skips frames, a cache that is rewound while positions go on, positions that are pinned, or that "
        "count tokens.",
    ),
    # Lowering: pools, tables and targets.
    "HF-CAPACITY": Entry(
        "A head has more frames to hold than its region has pages.",
        "This is a fault of headforce; please report it with the policy and the chunk sizes.",
        "The bound of a rule is too small for what it holds.",
    ),
    "HF-FORGOTTEN": Entry(
        "A pass went back to earlier frames, or began inside the last pass, and needs frames that are no longer held.",
        "Rewrite from a frame that the rules still reach, or reset the stream and run it again from frame 0. Stores "
        "that are kept (`on_switch`) while a prompt switch runs frames again may need what they held there: flush() "
        "or recache() empties them.",
        "A recache or a rewind that goes back farther than the rules remember.",
    ),
    "HF-TARGET": Entry(
        "The compile options name a target that does not exist.",
        "Use one of the names that the message lists.",
        "A misspelt target, or one of a package that is not installed here.",
    ),
    "HF-PRESET": Entry(
        "A preset, or an argument of one, does not exist.",
        "Use one of the names that the message lists; `headforce.presets` has them, with what they take.",
        "A misspelt preset or argument, or one of a package that is not installed here.",
    ),
    "HF-LABELS": Entry(
        "A label file does not say, once and for every head, what it is.",
        "The message names the layer; docs/systems.md shows the forms that are read.",
        "A head without a label or with two, labels of another system, or a file of another form.",
    ),
    "HF-KERNEL": Entry(
        "A kernel was asked for tensors that it does not take.",
        "Use another target, such as sdpa, or convert the tensors; docs/kernels.md says what each kernel takes.",
        "A dtype, head dim or layout, a device, or frames so short that this kernel was not made for them.",
    ),
    "HF-CUDAGRAPHS": Entry(
        "Passes were to be captured as CUDA graphs, and cannot be.",
        "Leave `cudagraphs` out, or give it what the message asks for; docs/performance.md says what is captured.",
        "A machine or a target that has no CUDA graphs, view mode, an input on the host, or sizes that change.",
    ),
    "HF-TABLES": Entry(
        "Tables name heads, runs or rows that are not there.",
        "Of tables that headforce made this is a fault of headforce; please report it with the policy. Tables of your "
        "own must stay inside the query and the pages that they are used with.",
        "Tables made by hand, or changed after they were made.",
    ),
    "HF-VERIFY-SITE": Entry(
        "What a compiled site computed, or what its pages hold, is not what it should be.",
        "This is a fault of the target or of headforce; please report it with the folder that was written.",
        "A fault in a target, a kernel or a page write, found because `verify` asked for it.",
    ),
    "HF-VERIFY-GRAPH": Entry(
        "A lowered graph does not have the structure that it should have.",
        "This is a fault of headforce, or of another pass over the graph; please report it with the graph.",
        "A fault in the rewriting of a graph, or a graph that something else changed while it was rewritten.",
    ),
    "HF-VERIFY-PLAN": Entry(
        "A plan is not what the oracle says.",
        "This is a fault of headforce, or of an operator's `frames`; please report it with the policy.",
        "An operator whose `frames` and `materialize` differ, or a fault in planning.",
    ),
    # The compiler: options, sessions and what happens at run time.
    "HF-OPTION": Entry(
        "An option of the compiler does not exist, or has a value that it cannot take.",
        "docs/usage.md lists the options.",
        "A misspelt option or value, or a policy in the options of a model that was prepared with another one.",
    ),
    "HF-ADAPTER": Entry(
        "headforce.prepare was given a model of a family that it does not know.",
        "Write an adapter for the family (docs/extending.md).",
        "A model without a list of cache dicts among its arguments, or a pipeline that holds two models.",
    ),
    "HF-PREPARED": Entry(
        "A model was prepared twice, or a session is used that is over.",
        "Call restore() on a session before preparing its model again, and use the session of the newest prepare().",
        "prepare() ran again, for example in a notebook cell, without restore(); or compile() or switch() after it.",
    ),
    "HF-VIEW": Entry(
        "A policy asks for something that needs caches of our own, and the model keeps its cache (view mode).",
        "Call headforce.prepare(model, policy=...), which owns the cache, and leave the policy out of the options.",
        "Stores, prompt switches, or a warm-up over a past that is joined by cat, in view mode.",
    ),
    "HF-EVICTED": Entry(
        "A rule reads frames that the model's own cache holds no more, and the model keeps its cache (view mode).",
        "Keep to the model's window and sink, give a stream that ends before it evicts a `horizon`, or call "
        "headforce.prepare(model, policy=...) to own the cache.",
        "A rule with a longer memory than the model's own window.",
    ),
    "HF-LAYER-ID": Entry(
        "A policy tells layers apart, and a graph that was compiled without prepare() does not say which they are.",
        "Call headforce.prepare(model, policy=..., mode='view'), or compile the whole model as one graph.",
        "Blocks that are compiled one by one and share a graph, under a policy that differs by layer.",
    ),
    "HF-ADOPT": Entry(
        "A cache cannot be adopted, or does not belong to this model.",
        "Prepare the model before the first call, and pass every stream its own caches.",
        "A cache that was filled before prepare(), caches of two videos in one call, or a call without any.",
    ),
    "HF-EAGER": Entry(
        "A prepared model ran, wholly or in part, without headforce's compiled code.",
        "Call the compiled model; look for a disabled compiler, a recompile limit, or suppressed errors "
        "(TORCH_LOGS=recompiles,graph_breaks).",
        "A model called past its compiled form, its forward called or compiled in its place, a recompile limit, a "
        "graph break, or TORCH_COMPILE_DISABLE.",
    ),
    "HF-OWNED": Entry(
        "A site was recognised, but its cache cannot be owned.",
        "The message names the form that was found; docs/models.md lists those that can be owned.",
        "A past joined by cat, keys rotated when read, or rules that differ between heads that share a K/V head: forms "
        "that view mode takes.",
    ),
    "HF-FRAME": Entry(
        "The rows of a pass are not a whole number of frames.",
        "Send whole frames, the same grid in every pass.",
        "A pass that holds a part of a frame, or a grid that changed between two passes.",
    ),
    "HF-SHAPE": Entry(
        "A stream changed its batch size, frame size, dtype or device.",
        "Use other caches for another shape.",
        "Another batch, resolution, dtype or device with the caches of an earlier video.",
    ),
    "HF-DEMO": Entry(
        "The demo lacks something that it needs.",
        "It runs the example model of a checkout: `git clone` headforce and run `make demo` in its top folder.",
        "headforce was installed without its examples, or the folder for results cannot be written.",
    ),
    # Profiles
    "HF-PROFILE-FILE": Entry(
        "A profile on disk cannot be read or written, or it is of something else.",
        "Give another folder, or measure again with --fresh. A profile is read by the version that wrote it.",
        "A wrong path, or a profile of another model, version or settings.",
    ),
    "HF-PROFILE-DATA": Entry(
        "What was measured is not enough, or not whole.",
        "Make longer videos, name a chunk and a pass that all videos have, and see that every pass is compiled.",
        "A rollout that was too short, or attention that gave NaN.",
    ),
    "HF-PROFILE-METHOD": Entry(
        "A way to classify heads, or a constant of it, does not exist or is out of range.",
        "The message lists what there is; docs/profile.md explains each.",
        "A misspelt method or constant.",
    ),
    "HF-BUDGET": Entry(
        "No policy can be found within the budget.",
        "Raise the budget, or give cheaper candidates with --rule, such as drop().",
        "A budget below what the smallest policy of the method holds.",
    ),
    # Predictions
    "HF-MACHINE-FILE": Entry(
        "A file with the times of a machine cannot be read, or does not have what is asked for.",
        "Measure the machine anew with `headforce calibrate --out FILE`, with the dtype of the prediction.",
        "A wrong path, a file that was cut short, one of another version or kind, or times of another dtype.",
    ),
    # Scripts that are run unedited.
    "HF-RUN-START": Entry(
        "The command of `headforce run` cannot be started.",
        "Write it behind --, as it would be written alone: headforce run --policy NAME -- python inference.py ARGS.",
        "A command that is no Python script, or that is not there.",
    ),
    "HF-RUN-NOTHING": Entry(
        "A script ran to its end, and no attention in it was rewritten.",
        "Its model has to be of a family that an adapter knows (docs/extending.md), called with a cache, in "
        "Python that "
        "has headforce installed and reads its environment (no -I or -E), and not inside the script's own "
        "torch.compile.",
        "The script's model was never compiled, or is of a family that has no adapter.",
    ),
    "HF-RUN-REFUSED": Entry(
        "A pass of a script's model was refused, and the script went on and ended as if it had worked.",
        "The message has the refusal; its output is not what the policy asks for.",
        "The script catches exceptions, or torch swallowed a compiler error.",
    ),
    "HF-EXAMPLE": Entry(
        "A target on the command line gives no model and calls of it.",
        "Name a function without arguments that returns (model, args, kwargs), or a model and its calls "
        "(docs/usage.md); a class will do for families of which an adapter can make a small model.",
        "A wrong path or name, or a function that returns something other than (model, args, kwargs).",
    ),
    "HF-COMPARE": Entry(
        "The two runs of `headforce compare` gave nothing that can be compared.",
        "The script has to end well both times and write the same videos; --video says to which files.",
        "A script that saves no video, or two videos of different size.",
    ),
    "HF-VIDEO": Entry(
        "A video cannot be read or written.",
        "Films need PyAV (pip install 'headforce[video]'); tensors are read from .npy, .pt and .safetensors, "
        "one in a file.",
        "A missing codec or package, or a broken file.",
    ),
    # Shells
    "HF-SHELL-SHAPE": Entry(
        "A cache shell was asked for with a shape that has no elements.",
        "Adopt the cache after the model has allocated it at its full size.",
        "A cache that the model allocates at its first use.",
    ),
    "HF-SHELL-SYSTEM": Entry(
        "This system cannot map the small shared memory that stands in for the model's cache.",
        "Owned mode needs Linux with memfd_create, and CUDA virtual memory for a cache on a GPU. Elsewhere set "
        "HEADFORCE_SHELLS=off, which keeps the model's own cache at its full size, or use view mode.",
        "A system other than Linux, or a sandbox that forbids memfd_create or virtual memory of the GPU.",
    ),
    "HF-SHELL-MAPS": Entry(
        "A process cannot have as many memory mappings as the shells of this cache need: one for every 2 MiB.",
        "Raise vm.max_map_count (sysctl -w vm.max_map_count=262144), shorten the model's cache, or use view mode.",
        "A long cache with many layers, and the kernel's default of 65530 mappings.",
    ),
    # kvpass: attention that the graph pass leaves as it is.
    "HF-LATE": Entry(
        "A graph was compiled before the model was prepared or restored, and cannot serve both.",
        "Call torch._dynamo.reset() after prepare() or restore(), so that the model is compiled anew.",
        "The compiled model ran before prepare(), or ran on after restore().",
    ),
    "HF-GRAD": Entry(
        "Attention whose result needs a gradient is not rewritten.",
        "Call the model under torch.no_grad() or torch.inference_mode().",
        "Training, or inference without torch.no_grad().",
    ),
    "HF-DROPOUT": Entry(
        "Attention with dropout is not rewritten.",
        "Call model.eval(), or pass dropout_p=0.0.",
        "A model in training mode.",
    ),
    "HF-MASK": Entry(
        "The attention mask is not proved to be of a known class.",
        "Attend without a mask: the cache slice already says what is read. A mask built from constants is also proved.",
        "A mask that is an input of the graph, or computed from one: a block-causal or a padding mask.",
    ),
    "HF-SCOREMOD": Entry(
        "Attention scores are changed before the softmax by more than a constant factor.",
        "Pass no score_mod, soft cap or bias; a mask belongs into the mask argument, where its class can be proved.",
        "A score_mod, a soft cap, or a bias added to scores.",
    ),
    "HF-PROPE": Entry(
        "Camera matrices multiply queries and keys (PRoPE), so positions do not lie in RoPE alone.",
        "Such attention stays as it is; with on_refuse='warn' the other sites of the model are rewritten.",
        "Attention conditioned on cameras.",
    ),
    "HF-OPAQUE": Entry(
        "Query, key and value leave the compiled graph, so their attention is not seen.",
        "Take torch.compiler.disable off the attention, or the graph break in front of it (explain() lists them).",
        "torch.compiler.disable around attention, or a graph break right in front of it.",
    ),
    "HF-LAYOUT": Entry(
        "The axes of an attention operand are not known to be batch, head, rows and channels.",
        "Use operands of shape [B, H, S, D] with fixed numbers of heads and channels.",
        "Operands with three dims, or heads and channels whose number is not fixed in the graph.",
    ),
    "HF-ATTENTION-FORM": Entry(
        "An attention call is written in a form that no recogniser rewrites.",
        "Use torch.nn.functional.scaled_dot_product_attention, or add a recogniser (docs: adding a recogniser).",
        "An attention kernel that has no recogniser, or a scale that the graph computes.",
    ),
    "HF-NESTED": Entry(
        "Attention inside a nested graph, such as activation checkpointing, is not searched.",
        "Switch checkpointing off for inference.",
        "torch.utils.checkpoint around a block.",
    ),
    "HF-NOHISTORY": Entry(
        "Self-attention that keeps no past: there is no cache for a policy to act on.",
        "Keep K and V in a cache written in the same graph, or concatenate them with a past that is a graph input. For "
        "a first pass that is called without a past, give it an empty one ([B, 0, H, D]), or have the report warn: "
        "options={'on_refuse': 'warn'}.",
        "A model that attends within its chunk, a cache written in another graph, or a first pass without a past.",
    ),
    "HF-CROSS": Entry(
        "Cross-attention. Its keys are no past, so no policy is about it; it stays as it is.",
        "Nothing needs to be done.",
        "Keys and values that come from text, or from a cache that the graph only reads.",
    ),
    "HF-FIRST": Entry(
        "The first pass over a past that is joined by cat. The past is still empty, so no policy is about it.",
        "Nothing needs to be done.",
        "The first chunk of a video.",
    ),
    "HF-CACHE-FORM": Entry(
        "A cache is read or written in a way that is not a known form.",
        "Write cache[:, a:b] = k and read cache[:, c:b], or concatenate [past, new]; or add a recogniser.",
        "A cache written by an index tensor, a mask, a scatter or a blend.",
    ),
    "HF-CACHE-PARTS": Entry(
        "The past of one attention call lies in several graph inputs, such as a Python list used as a ring.",
        "Keep the past in one tensor for each of K and V, written in place or grown by cat, with the oldest "
        "rows first.",
        "A list of chunks that is joined at every pass.",
    ),
    "HF-CACHE-RANGE": Entry(
        "The rows that attention reads are not proved to end with the rows just written, and to hold all of them.",
        "Use the same end for the write and for the read.",
        "A read that ends before or after the write, or starts behind it; a pass that caches rows it sends, but not "
        "the last of them.",
    ),
    "HF-CACHE-ORDER": Entry(
        "A cache is written after the slice that attention reads was taken.",
        "Roll, append, then slice and attend.",
        "Attention over a slice, and then the write into the cache.",
    ),
    "HF-CACHE-COMMIT": Entry(
        "Attention reads a copy of the cache, and the cache itself is not changed as the copy is.",
        "Do to the cache what was done to the copy, in the same graph; a pass that keeps nothing has no "
        "history to own.",
        "A noisy pass over a clone of the cache that is thrown away, in a graph of its own.",
    ),
    "HF-CACHE-UNREAD": Entry(
        "The graph writes what looks like a cache, or joins it with new rows, but no attention call in it reads that.",
        "Find the graph break between write and attention (explain() lists them), or the attention that is not known.",
        "A graph break, or attention of an unknown form, between the write and the read.",
    ),
    "HF-ROLL": Entry(
        "Rows are moved inside the cache in a way that is not an eviction of the oldest rows after a sink.",
        "Copy the newer rows towards the front, through clone(), and append right behind them.",
        "torch.roll of the whole cache, a shift to the right, or one that leaves a gap behind the sink.",
    ),
    "HF-KV-RANGE": Entry(
        "K and V of one attention call use different rows of their caches.",
        "Write, roll and read the same rows of both.",
        "Different windows, or sinks, for K and V.",
    ),
    "HF-SHARED-KV": Entry(
        "K and V are read from one graph input.",
        "Give K and V a tensor each.",
        "One tensor with K and V side by side, or K used as V.",
    ),
    "HF-ESCAPE": Entry(
        "Something besides the attention call reads the cache, or a value between the cache and the call.",
        "Keep the other reader out of the compiled graph; the message names it.",
        "Statistics of the cache, a second attention over it, or a debugging print.",
    ),
    "HF-ROPE": Entry(
        "No rotary embedding was recognised around an attention call, so positions cannot be remapped.",
        "Use rules that keep positions, or write RoPE in one of the forms of docs/models.md.",
        "Positions that are learnt, absolute, or rotated in a spelling that is not known.",
    ),
}


class HeadforceError(Exception):
    """A refusal: `code`, `site`, what was `found`, what was `needed`, and a `hint`.

    Args:
        code: a key of `CATALOGUE`.
        found: what headforce met, in one sentence.
        needed: what would have been accepted.
        site: where: a file and key, a layer and head, or a call site with file:line. Empty if there is no place.
        hint: what to do; the catalogue's remedy if empty.
    """

    def __init__(self, code: str, *, found: str, needed: str, site: str = "", hint: str = "") -> None:
        if code not in CATALOGUE:
            raise KeyError(f"{code} is not in the catalogue of errors")
        self.code = code
        self.site = site
        self.found = found
        self.needed = needed
        self.hint = hint or CATALOGUE[code].remedy
        super().__init__(code, site, found, needed, self.hint)

    def __str__(self) -> str:
        where = f" at {self.site}" if self.site else ""
        return f"[{self.code}]{where}: found {self.found}; needed {self.needed}. {self.hint}"

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders (compile workers, test runners); keyword-only arguments need help there.
        return _rebuild, (self.code, self.found, self.needed, self.site, self.hint)

    def at(self, site: str) -> HeadforceError:
        """The same refusal with its place put in front: an inner error learns its file or layer on the way out."""
        place = f"{site}, {self.site}" if self.site else site
        return HeadforceError(self.code, found=self.found, needed=self.needed, site=place, hint=self.hint)


def _rebuild(code: str, found: str, needed: str, site: str, hint: str) -> HeadforceError:
    return HeadforceError(code, found=found, needed=needed, site=site, hint=hint)


def nearest(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'window'?)"` when a known name is close to `name`, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
