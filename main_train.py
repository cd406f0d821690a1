"""Train a segmentation network on a dataset folder.

    python main_train.py --root /data/amos --output runs/amos --dataset amos --network REP3D
    python main_train.py --root /data/amos --output runs/amos --dataset amos --network REP3D --resume
    torchrun --nproc_per_node 4 main_train.py --root /data/amos --output runs/amos --dataset amos --network REP3D

The recipe is the paper's: DiceCE loss, AdamW, two random crops per case, sliding-window validation. The output folder
receives best_metric_model.pth, last_checkpoint.pth, previous_checkpoint.pth, args.json, versions.json, tensorboard/,
and the Dice of each validation case in dice.csv and dice.json.

SIGTERM, Ctrl-C and the end of --max_hours stop the run after the current step: everything is saved, the command that
resumes the run is printed, and the exit status is 75.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.data.datasets import DATASETS
from engine.runtime.arguments import (
    DEFAULT_NETWORK,
    add_device_arguments,
    add_fix_affine_argument,
    add_network_arguments,
    add_split_arguments,
    add_window_arguments,
    boolean,
    hours,
    network_overrides,
    number,
    use_defaults,
)
from engine.runtime.errors import OneLineParser, Stopped, run
from engine.runtime.memory import tune_process
from engine.runtime.recipe_arguments import RECIPES, add_extension_arguments, add_recipe_arguments, recipe_file
from engine.runtime.stop_requests import StopRequests, resume_command
from networks import NETWORKS

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset

    from engine.data.cases import Case
    from engine.training.state import TrainingState

# What to lower if memory runs out.
MEMORY = "--crop_sample, --batch_size, --roi_size, --num_workers or, validating, --sw_batch_size (or --checkpointing)"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; the defaults are the paper's."""
    parser = OneLineParser("main_train.py", description=__doc__.splitlines()[0])
    data = parser.add_argument_group("data")
    root = "dataset folder with imagesTr, labelsTr and, unless there is a --split, imagesVal, labelsVal"
    data.add_argument("--root", metavar="DIR", required=True, help=root)
    data.add_argument("--dataset", required=True, help=f"{', '.join(DATASETS)}, or the path of a JSON description")
    add_split_arguments(data)
    data.add_argument("--output", metavar="DIR", required=True, help="folder for checkpoints and logs")
    add_fix_affine_argument(data)
    data.add_argument("--full_check", action="store_true", help="check the voxels of all cases, not of two per split")
    data.add_argument("--cache_dir", metavar="DIR", help="keep preprocessed cases on disk, and read single crops")
    share = "without --cache_dir: share of the cases kept in memory (default: 0.1)"
    data.add_argument("--cache_rate", type=number(float, 0, 1), metavar="SHARE", help=share)
    data.add_argument("--num_workers", type=number(int, 0), default=2, metavar="N", help="loading processes per device")

    network = parser.add_argument_group("network")
    names = f"{', '.join(NETWORKS)} (default: {DEFAULT_NETWORK}, or that of --pretrained_weights)"
    network.add_argument("--network", metavar="NAME", choices=NETWORKS, help=names)
    add_network_arguments(network)
    network.add_argument(
        "--pretrain", type=boolean, default=False, metavar="BOOL", help="True to start from --pretrained_weights"
    )
    network.add_argument("--pretrained_weights", metavar="FILE", help="checkpoint or state dict to start from")

    recipe = parser.add_argument_group("recipe")
    add_recipe_arguments(recipe)
    add_extension_arguments(parser.add_argument_group("beyond the paper's recipe"))
    snapshots = "keep the weights of every N-th iteration, as weights_<iteration>.pth"
    recipe.add_argument("--snapshot_step", type=number(int, 1), metavar="N", help=snapshots)

    validation = parser.add_argument_group("validation")
    validation.add_argument(
        "--eval_step", type=number(int, 1), default=500, metavar="N", help="iterations between validations"
    )
    part = "validate N cases, chosen by --seed, while training, and all at the end (default: always all)"
    validation.add_argument("--val_cases", type=number(int, 1), metavar="N", help=part)
    add_window_arguments(validation, overlap=0.25)

    execution = parser.add_argument_group("execution")
    add_device_arguments(execution)
    execution.add_argument("--compile", action="store_true", help="compile the network (needs a C++ compiler)")
    memory = "recompute activations: less memory, more time, the same result"
    execution.add_argument("--checkpointing", action="store_true", help=memory)
    execution.add_argument("--resume", action="store_true", help="continue the run in --output")
    services = ("wandb", "mlflow")
    also = "wandb, mlflow: log there, too (their packages are optional); TensorBoard's files are always written"
    execution.add_argument("--log", nargs="+", metavar="NAME", choices=services, help=also)
    limit = "save and stop after this time, with exit status 75"
    execution.add_argument("--max_hours", type=hours, metavar="HOURS", help=limit)
    words = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(words)
    if args.recipe != RECIPES[0]:
        args = parser.parse_args([f"@{recipe_file(args.recipe)}", *words])
    if args.warmup_iter is None:
        args.warmup_iter = args.max_iter // 50
    if args.cache_dir and args.cache_rate is not None:
        parser.error("--cache_rate: found it with --cache_dir, which keeps every case on disk, expected one of them")
    if args.cache_rate is None and not args.cache_dir:
        args.cache_rate = 0.1
    if args.pretrain != bool(args.pretrained_weights):
        parser.error("--pretrain True and --pretrained_weights go together, expected both or neither")
    if not args.pretrain:
        for name in ("freeze_encoder", "layer_decay"):
            if getattr(args, name) != parser.get_default(name):
                parser.error(f"--{name}: found it without --pretrain True, expected weights to start from")
        use_defaults(vars(args))
    return args


def main(args: argparse.Namespace) -> None:
    """Train in this process or, under torchrun, in all of its processes together."""
    tune_process()  # before PyTorch is imported, which happens in functions: --help and wrong flags answer at once
    try:
        with StopRequests(args.max_hours) as stop:
            from engine.runtime.distributed import join_processes

            stop.raise_if_requested()  # imports take seconds
            with join_processes(args.gpu, stop.raise_if_requested) as device:
                train(args, *prepare(args, device, stop), stop)
    except Stopped as request:
        raise Stopped(f"{request}, go on with: {resume_command(Path(args.output))}") from None


def prepare(
    args: argparse.Namespace, device: "torch.device", stop: StopRequests
) -> "tuple[TrainingState, list[Case], list[Case]]":
    """Check everything, build or restore the state of the run, and find the training and validation cases."""
    import torch

    from engine.data.cases import find_training_cases
    from engine.data.dataset_checks import check_cases
    from engine.data.datasets import find_description
    from engine.data.split_file import find_split
    from engine.data.splits import Split
    from engine.prediction.ensemble import name_sided_classes
    from engine.runtime.devices import amp_name
    from engine.runtime.errors import InputError
    from engine.runtime.files import LAST, PREVIOUS, make_output_folder
    from engine.runtime.wording import list_some
    from engine.training.services import check_services
    from engine.training.start import read_start
    from engine.training.state import TrainingState
    from engine.training.validation import put_chosen_first
    from engine.weights.checkpoints import NetworkConfig

    stop.raise_if_requested()
    check_services(args.log)
    start = read_start(vars(args))
    description = find_description(args.dataset, args.fix_affine)
    split = find_split(args.split, args.fold)
    output = Path(args.output)
    make_output_folder(output)

    torch.manual_seed(args.seed)
    training_cases, validation_cases = find_training_cases(Path(args.root), description, split)
    if split is None:
        split = Split.of_folders(*([case["id"] for case in cases] for cases in (training_cases, validation_cases)))
    validation_cases = put_chosen_first(validation_cases, args.val_cases, args.seed)
    config = NetworkConfig.for_dataset(description, args.network, args.roi_size, network_overrides(args))
    state = TrainingState(vars(args), config, description, split, device)
    if args.resume:
        state.restore(output)
    elif (output / LAST).exists() or (output / PREVIOUS).exists():
        raise InputError(
            f"--output: {output} holds a run already, expected --resume, another folder, or the run deleted"
        )
    elif start is not None:
        state.start_from(start)

    splits = {"training": training_cases, "validation": validation_cases}
    for note in description.notes:
        print(note)
    if "RL" in (args.mirror or ()) and (sided := name_sided_classes(description.classes)):
        print(f"warning: --mirror: RL exchanges left and right, which leaves {list_some(sided)} without a side")
    check_cases(splits, description, args.num_workers, args.full_check, stop.raise_if_requested)
    stop.raise_if_requested()  # nothing is written yet
    parameters = sum(parameter.numel() for parameter in state.network.parameters())
    print(f"{description.name}: {len(training_cases)} training and {len(validation_cases)} validation cases")
    print(f"split: {split}")
    print(f"{args.network}: {parameters / 1e6:.2f} M parameters on {device}, --amp {amp_name(state.precision)}")
    return state, training_cases, validation_cases


def load_data(
    args: argparse.Namespace,
    state: "TrainingState",
    training_cases: "list[Case]",
    validation_cases: "list[Case]",
    stop: StopRequests,
) -> "tuple[Iterable[Any], Dataset[Any]]":
    """Prepare the batches of the iterations to come, and this process's share of the validation cases."""
    from engine.data.cache import cached_dataset
    from engine.data.loading import training_loader
    from engine.runtime.recipe_arguments import sampling_options
    from load_datasets_transforms import training_pipelines

    training_transforms, validation_transforms = training_pipelines(
        state.description, args.roi_size, args.crop_sample, **sampling_options(args)
    )
    cache = {"cache_dir": args.cache_dir, "cache_rate": args.cache_rate, "num_workers": args.num_workers}
    poll = stop.raise_if_requested
    training_set = cached_dataset(training_cases, training_transforms, **cache, poll=poll)
    validation_set = cached_dataset(validation_cases, validation_transforms, **cache, sharded=True, poll=poll)
    batches = training_loader(
        training_set,
        args.accumulate * args.batch_size,
        args.seed,
        start=state.iteration,
        stop=args.max_iter,
        num_workers=args.num_workers,
        pin_memory=state.device.type == "cuda",
    )
    return batches, validation_set


def train(
    args: argparse.Namespace,
    state: "TrainingState",
    training_cases: "list[Case]",
    validation_cases: "list[Case]",
    stop: StopRequests,
) -> None:
    """Train to the last iteration, with a validation every ``--eval_step`` iterations and at the end."""
    import json
    import time

    from torch.utils.data import Subset
    from tqdm import tqdm

    from engine.data.loading import seed_iteration
    from engine.prediction.sliding_window import SlidingWindow
    from engine.runtime.distributed import AnyProcess, barrier, process_rank, shard
    from engine.runtime.files import ARGUMENTS, BEST, VERSIONS, write_text
    from engine.runtime.versions import software_versions
    from engine.training.log import NoLog, StepMonitor, log_evaluation
    from engine.training.loss import make_loss
    from engine.training.optimizer import LearningRateSchedule
    from engine.training.services import open_logs
    from engine.training.step import train_step
    from engine.training.validation import validate

    output, device, progress = Path(args.output), state.device, state.progress
    first = process_rank() == 0  # the process that writes and prints
    if first:
        write_text(output / ARGUMENTS, json.dumps(vars(args), indent=2) + "\n")
        write_text(output / VERSIONS, json.dumps(software_versions(), indent=2) + "\n")
    if not args.resume:
        state.save(output)  # so that --resume works from the first moment on
        stop.raise_if_requested()

    chosen = validation_cases[: args.val_cases]
    batches, validation_set = load_data(args, state, training_cases, validation_cases, stop)
    chosen_set = Subset(validation_set, range(len(shard(chosen))))
    # Everything is saved when a validation begins: a request to stop may interrupt it between two windows.
    window = SlidingWindow(
        args.roi_size, args.sw_batch_size, args.overlap, device, state.autocast, poll=stop.raise_if_requested
    )

    criterion = make_loss(bool(state.description.labels.ignored), args.deep_supervision)
    learning_rate = LearningRateSchedule(args.lr_schedule, args.lr, args.warmup_iter, args.max_iter)
    any_process = AnyProcess(device)
    log = open_logs(args.log, output, vars(args), progress.first_logged) if first else NoLog()

    def save() -> None:
        log.flush()  # first, so that no step is missing in the log of a run that resumes from this checkpoint
        state.save(output)

    def evaluate() -> None:
        began = time.perf_counter()
        part = validation_set if state.iteration == args.max_iter else chosen_set
        table, figures = validate(state.evaluated_network, part, state.description, window, args.num_workers)
        progress.validation_s += time.perf_counter() - began
        compared = table.part([case["id"] for case in chosen])  # the same cases in every evaluation
        state.keep_best(compared.mean(), output)
        if first:
            table.write(output)
        log_evaluation(log, state, table, compared, figures)
        progress.awaits_evaluation = False
        save()

    with log:
        monitor = StepMonitor(log, progress)
        if progress.awaits_evaluation:
            evaluate()
        state.network.train()
        bar = tqdm(batches, "training", initial=state.iteration, total=args.max_iter, disable=not first)
        asked = time.perf_counter()
        for batch in bar:
            started = time.perf_counter()
            image, label = (batch[key].to(device, non_blocking=True) for key in ("image", "label"))
            rate = learning_rate(state.iteration)
            state.begin_step()
            seed_iteration(args.seed, state.iteration, process_rank())
            step = train_step(state, criterion, image, label, rate)
            progress.iteration += 1
            progress.training_s += time.perf_counter() - asked
            bar.set_postfix(monitor.add(state.iteration, step, rate, started, waited=started - asked))

            progress.awaits_evaluation = state.iteration % args.eval_step == 0 or state.iteration == args.max_iter
            if args.snapshot_step and state.iteration % args.snapshot_step == 0:
                state.save_weights(output / f"weights_{state.iteration}.pth")
            stopping = any_process(stop.reason is not None)
            if stopping or progress.awaits_evaluation:
                monitor.finish()
                state.check_weights()
                save()
            if stopping:
                barrier()  # until process 0 has saved
                raise Stopped(f"{stop.reason or 'a request to another process'} at iteration {state.iteration}")
            if progress.awaits_evaluation:
                evaluate()
            asked = time.perf_counter()
    print(f"best mean Dice {progress.best_dice:.4f} at iteration {progress.best_iteration}: {output / BEST}")


if __name__ == "__main__":
    sys.exit(run(main, parse_args(), to_lower=MEMORY))
