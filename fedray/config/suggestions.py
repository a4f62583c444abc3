"""What a name that does not exist was meant to be: spelling, synonym, another place."""

import difflib
import re
from collections.abc import Collection, Iterable, Iterator

from pydantic import BaseModel

from fedray.config.declaration import keys_of

MAX_COMPARED = 64  # characters of a name
MIN_RATIO = 0.72  # of letters in common, in names that begin alike
# what other frameworks, and people, call a key
OTHER_NAMES = {
    "fusion_algorithm": "strategy aggregator algorithm aggregation_algorithm fusion "
    "aggregation_method aggregation_rule aggregation_strategy fusion_rule fl_algorithm "
    "federated_optimizer",
    "model_type": "framework backend model_framework",
    "model_file": "model model_path initial_model init_model pretrained checkpoint "
    "weights model_weights model_spec",
    "architecture": "net network model_fn model_class model_name model_def",
    "trainable": "freeze frozen trainable_layers unfreeze trainable_parameters "
    "trainable_params layers_to_train finetune",
    "server_learning_rate": "server_lr global_lr eta eta_g global_learning_rate",
    "server_momentum": "beta1 beta_1 server_beta1",
    "server_beta2": "beta2 beta_2",
    "server_tau": "tau",
    "rounds": "num_rounds n_rounds comm_round comm_rounds communication_rounds "
    "global_rounds num_server_rounds num_global_epochs global_epochs max_rounds "
    "rounds_to_train training_rounds n_global_rounds",
    "epochs": "local_epochs num_epochs n_epochs num_local_epochs local_epoch local_ep "
    "client_epochs epochs_per_round max_epochs party_epochs",
    "local_steps": "num_steps steps max_steps num_local_steps local_iterations "
    "steps_per_round local_iters n_local_steps local_updates",
    "learning_rate": "lr client_lr local_lr client_learning_rate step_size eta_l "
    "local_learning_rate lr_init initial_lr base_lr",
    "scheduler": "lr_scheduler lr_schedule schedule scheduler_name lr_scheduler_type "
    "learning_rate_schedule learning_rate_scheduler sched",
    "scheduler_args": "scheduler_kwargs scheduler_params lr_scheduler_args "
    "lr_scheduler_kwargs scheduler_config",
    "scheduler_every": "scheduler_interval scheduler_step lr_scheduler_interval",
    "gradient_clip_norm": "gradient_clip_val grad_clip max_grad_norm grad_norm "
    "clip_grad_norm gradient_clipping gradient_clip grad_clip_norm clip_gradients",
    "mixed_precision": "amp use_amp fp16 bf16 autocast precision",
    "optimizer": "opt optim client_optimizer local_optimizer optimizer_name optim_name",
    "optimizer_args": "optim_args optimizer_params optimizer_kwargs optimizer_config",
    "batch_size": "batch bs train_batch_size local_batch_size minibatch_size local_bs",
    "loss": "loss_fn criterion loss_function objective loss_name",
    "loss_args": "loss_kwargs loss_params",
    "proximal_mu": "fedprox mu prox_mu fedprox_mu fedproxloss_mu proximal prox",
    "data_handler": "data_loader dataloader loader handler data_handler_class_name",
    "parties": "clients workers participants collaborators sites client_list silos",
    "partition": "dataset datasets split splits partitioner simulation data_split",
    "num_parties": "num_clients n_clients n_parties client_num client_num_in_total "
    "total_clients num_collaborators num_participants min_available_clients num_sites "
    "num_workers n_workers",
    "groups": "clusters grouping cluster clustering",
    "test_data": "test_set eval_data val_data validation_data test_dataset test_file",
    "party_fraction": "fraction_fit client_fraction fraction frac sample_rate "
    "participation participation_rate fraction_train sample_ratio join_ratio "
    "min_fit_clients clients_per_round client_num_per_round num_clients_per_round "
    "client_sampling_rate fraction_clients",
    "selection": "client_selection sampler sampling client_manager",
    "quorum": "min_clients min_parties perc_quorum min_responses_required "
    "min_reporting min_train_nodes",
    "over_select": "oversampling over_selection over_sample",
    "deadline_s": "deadline round_deadline",
    "round_timeout_s": "timeout round_timeout timeout_s train_timeout max_timeout",
    "late": "stragglers straggler straggler_policy",
    "aggregation": "asynchronous async_mode fedbuff",
    "buffer_size": "buffer buffer_goal",
    "concurrency": "max_concurrency",
    "max_staleness": "staleness_limit staleness_bound",
    "lease_s": "lease lease_timeout",
    "drift_threshold": "threshold fda_threshold",
    "metrics": "metric eval_metrics scoring scorers evaluation_metrics score_names",
    "evaluate_every": "eval_every eval_interval eval_freq eval_frequency test_every "
    "frequency_of_the_test evaluate_interval eval_gap validate_every test_interval",
    "early_stopping": "early_stop earlystopping patience early_stopping_patience "
    "stop_early early_stopping_rounds",
    "target": "target_accuracy target_loss target_metric stop_at goal threshold_acc",
    "keep_best": "save_best save_best_only best_model restore_best_weights monitor "
    "load_best_model_at_end metric_for_best_model checkpoint_metric key_metric",
    "n_hostile": "num_malicious num_malicious_clients byzantine n_byzantine n_trim "
    "num_byzantine byzantine_client_num num_attackers malicious f",
    "n_selected": "num_clients_to_keep krum_m krum_param_m multi_krum_m",
    "clip_norm": "clip clipping_norm max_norm clipping_threshold norm_bound",
    "privacy": "dp differential_privacy central_dp dp_config privacy_config",
    "dp_sgd": "local_dp opacus dpsgd sample_privacy dp_optimizer",
    "secure_aggregation": "secagg secagg_plus secure_agg masking secure_sum",
    "min_sum": "reconstruction_threshold min_secagg_parties secagg_threshold",
    "privacy.epsilon": "eps target_epsilon epsilon_budget budget",
    "privacy.noise_multiplier": "sigma noise noise_scale z",
    "privacy.clip_norm": "clipping_norm max_norm clipping clip",
    "privacy.sampling": "participation amplification",
    "dp_sgd.epsilon": "eps target_epsilon epsilon_budget budget",
    "dp_sgd.noise_multiplier": "sigma noise noise_scale z",
    "dp_sgd.max_grad_norm": "clip_norm l2_norm_clip max_norm clipping_norm clip",
    "name": "run_name experiment experiment_name exp_name job_name project run",
    "seed": "random_seed rng_seed random_state manual_seed",
    "party_cpus": "num_cpus cpus n_cpus client_cpus cpus_per_client client_resources",
    "parties_per_actor": "clients_per_actor clients_per_worker",
    "wire_dtype": "compression dtype quantization",
    "keep_checkpoints": "max_checkpoints num_checkpoints save_top_k",
    "track": "tracker tracking logger mlflow tensorboard wandb enable_wandb",
    "attack": "attacks attack_type byzantine_attack",
    "parties.name": "id party_id client_id client_name site",
    "parties.data": "path data_path file data_file dataset folder",
    "parties.labels": "node host node_label selector",
    "parties.fields": "tags metadata attributes properties group",
    "partition.source": "dataset data path file data_path name",
    "partition.samples_per_party": "samples n_samples size num_samples "
    "samples_per_client",
    "partition.scheme": "method type mode distribution strategy kind "
    "partition_method iid non_iid",
    "partition.alpha": "dirichlet_alpha beta concentration partition_alpha",
    "partition.shards_per_party": "shards n_shards num_shards shards_per_client "
    "classes_per_party classes_per_client class_per_client",
    "partition.replace": "replacement with_replacement",
    "groups.by": "field key method on column",
    "groups.k": "n_groups num_groups n_clusters num_clusters",
    "attack.kind": "type name method attack_type",
    "attack.parties": "clients malicious attackers hostile byzantine_clients",
    "attack.scale": "strength factor epsilon attack_scale",
    "doc2vec.vector_size": "dim size embedding_dim embedding_size dimensions",
    "doc2vec.window": "window_size context context_size",
    "doc2vec.negative": "ns n_negative negative_samples",
    "doc2vec.min_count": "min_freq min_word_count",
}
# what is no key under any name: what to do instead
ADVICE = {
    "device devices gpu gpus num_gpus n_gpus use_gpu cuda use_cuda client_gpus "
    "gpus_per_client accelerator party_gpus num_gpus_per_client":
    "leave it out: a party takes a GPU wherever its node has one",
    "run_dir output_dir out_dir save_dir log_dir workspace checkpoint_dir output "
    "save_path log_path workdir work_dir results_dir":
    "write --run-dir FOLDER after the command",
    "resume resume_from resume_from_checkpoint": "write --resume after the command",
    "address ray_address server_address cluster_address":
    "set RAY_ADDRESS to use a cluster that is running",
    "warmup warmup_steps warmup_rounds warmup_epochs warmup_ratio":
    "write scheduler: cosine and scheduler_args: {warmup: ...}",
    "lr_decay lr_gamma":
    "write scheduler: exponential and scheduler_args: {gamma: ...}",
}  # fmt: skip
ARGUMENTS = (  # of optimizers
    "momentum", "weight_decay", "nesterov", "betas", "dampening", "amsgrad", "eps",
    "client_momentum", "rho", "lr_decay",
)  # fmt: skip


def normalize(name: str) -> str:
    """A name as keys are written: ``numClients``, ``Num-Clients`` are num_clients."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(name)[:MAX_COMPARED].strip(" -"))
    return re.sub(r"[\s-]+", "_", text).lower()


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of some names that another was probably meant to be; None if none is.

    Another spelling, one to three wrong letters (by length), all words of the other, or
    most letters where both begin alike.
    """
    wanted = normalize(name)
    ranked = [
        (distance, i, candidate)
        for i, candidate in enumerate(names)
        if (distance := _distance(wanted, normalize(candidate))) is not None
    ]
    return min(ranked)[2] if ranked else None


def _distance(a: str, b: str) -> float | None:
    """How far names are apart; None: too far to be meant."""
    if a == b or a.replace("_", "") == b.replace("_", ""):
        return 0
    n_wrong, longest = _n_edits(a, b), max(len(a), len(b))
    n_most = 1 if longest < 5 or a[:1] != b[:1] else 2 if longest < 12 else 3
    if n_wrong <= n_most and n_wrong < len(a):
        return n_wrong
    own, other = set(a.split("_")), set(b.split("_"))
    is_within = (own <= other or other <= own) and len(a) > 2
    if not is_within and a[:4] == b[:4]:
        is_within = difflib.SequenceMatcher(None, a, b).ratio() > MIN_RATIO
    return 10 + abs(len(a) - len(b)) if is_within else None


def _n_edits(a: str, b: str) -> int:
    """Letters to insert, leave out, replace or swap with the next (Damerau)."""
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        row = [i]
        for j, other in enumerate(b, 1):
            steps = [last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != other)]
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                steps.append(before[j - 2] + 1)
            row.append(min(steps))
        before, last = last, row
    return last[-1]


def suggest_key(
    name: str, place: str, root: type[BaseModel], allowed: Collection[str] = ()
) -> str | None:
    """What to write instead of a key that does not exist; None if nothing comes near.

    Parameters
    ----------
    place : where it was given: "" is the top, ``partition.``, ``parties[0].``.
    root : settings class of the top.
    allowed : the keys of the top that may be suggested; empty: all.
    """
    within = re.sub(r"\[\d+\]", "", place).removesuffix(".")
    wanted = normalize(name.removeprefix(place).rpartition(".")[2])
    places = dict(_places(root, allowed))
    own = places.pop(within, [])
    if match := _named(wanted, own, within):
        return f"did you mean {place + match!r}?"
    if not within and wanted in ARGUMENTS and "optimizer_args" in own:
        argument = wanted.removeprefix("client_")
        return f"write optimizer_args: {{{argument}: ...}}"
    for names, advice in ADVICE.items():
        if not (within or allowed) and wanted in names.split():
            return advice
    for other, keys in places.items():
        if match := _named(wanted, keys, other):
            return _elsewhere(match, other, within)
    near = nearest(wanted, own)
    return f"did you mean {place + near!r}?" if near else None


def _named(wanted: str, keys: Collection[str], place: str = "") -> str | None:
    """The key of this name, or that others call so."""
    prefix = f"{place}." if place else ""
    spellings = {_flat(key): key for key in keys}
    for key in keys:
        for other in OTHER_NAMES.get(prefix + key, "").split():
            spellings.setdefault(_flat(other), key)
    return spellings.get(_flat(wanted))


def _flat(name: str) -> str:
    """A name as it is compared: the same for ``num_clients`` and ``numclient``."""
    return name.replace("_", "").rstrip("s")


def _places(
    root: type[BaseModel], allowed: Collection[str]
) -> Iterator[tuple[str, list[str]]]:
    """The names of the top's keys, and of the keys of every mapping in it."""
    keys = {k: v for k, v in keys_of(root).items() if not allowed or k in allowed}
    yield "", list(allowed or keys)
    for name, key in keys.items():
        if key.nested:
            yield name, list(keys_of(key.nested))


def _elsewhere(match: str, place: str, within: str) -> str:
    """Where a key stands that was given in another place."""
    if not place:
        return f"{match} stands at the top of the config, not in {within}"
    is_party = place == "parties"
    written = f"[{{{match}: ...}}]" if is_party else f"{{{match}: ...}}"
    whose = "each of parties" if is_party else place
    return f"{match} stands in {whose}: write {place}: {written}"


def nearest_key(word: str, keys: Collection[str]) -> str | None:
    """The key of the top that a word names or nearly names; None if none."""
    return _named(normalize(word), keys) or nearest(word, keys) if word else None
